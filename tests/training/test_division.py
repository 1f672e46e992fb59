"""The images of each update are the same on any number of processes, and each of an epoch's comes once."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vision_ssm.data.loader import EpochLoader
from vision_ssm.errors import ConfigError
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.division import Division


class Numbers:
    def __init__(self, length: int) -> None:
        self.name = self.fingerprint = "numbers"
        self.paths = [str(number) for number in range(length)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (1, 1)), 0


def updates(
    length: int, config: TrainConfig, processes: int, begun_on: int, *, repeats: int = 1, start: int = 0
) -> list[list[int]]:
    """The images of an epoch's updates, from one of them on, in any order within an update."""
    division = Division.of(config, processes, begun_on)
    found: list[list[int]] = []
    for rank in range(processes):
        loader = EpochLoader(
            Numbers(length),  # type: ignore[arg-type]
            lambda image, target: (torch.zeros(1, 1, 1), target),
            batch_size=division.batch_size,
            multiple=division.whole,
            train=True,
            rank=rank,
            world_size=processes,
            repeats=repeats,
        )
        loader.set_position(3, start * division.accumulate)
        for number, batch in enumerate(loader):
            update = number // division.accumulate
            if update == len(found):
                found.append([])
            found[update] += batch.indices.tolist()
    return [sorted(images) for images in found]


def config_of(size: int, accumulate: int) -> TrainConfig:
    return TrainConfig.load(None, {"data.batch_size": size, "optim.accumulate": accumulate})


@pytest.mark.parametrize("length", [46, 53, 600])
@pytest.mark.parametrize("repeats", [1, 3])
def test_any_number_of_processes_makes_the_same_updates(length: int, repeats: int) -> None:
    config = config_of(6, 3)
    whole = updates(length, config, 2, 2, repeats=repeats)
    if repeats == 1:
        assert len({image for update in whole for image in update}) == sum(map(len, whole)) == length // 12 * 12
    for processes in (1, 3, 4, 6):
        assert updates(length, config, processes, 2, repeats=repeats) == whole, processes
    assert updates(length, config, 4, 2, repeats=repeats, start=1) == whole[1:]


def test_batches_are_no_larger_than_the_run_began_with() -> None:
    config = config_of(8, 2)
    assert Division.of(config, 1, 4) == Division(4, 8, 8, 32)
    assert Division.of(config, 8, 4) == Division(4, 4, 2, 32)
    assert Division.of(config, 4, 4) == Division(4, 8, 2, 32)
    with pytest.raises(ConfigError, match=r"batches of 8 images, 32 over all.*resume it on 1, 2, 4, 8, 16, 32"):
        Division.of(config, 3, 4)
    with pytest.raises(ConfigError, match="resume it on 1, 2, 4, 8, 16"):
        Division.of(config, 32, 4, multiple=2)
