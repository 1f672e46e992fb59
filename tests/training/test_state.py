from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.training import state as checkpoint
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.integrity import state_digest
from vision_ssm.training.shared_state import write_folder
from vision_ssm.training.state import read_state, refuse_changes, write_state


def state(number: int) -> dict[str, Any]:
    config = TrainConfig().to_dict()
    return {
        "model": {"weight": torch.full((100, 100), float(number))},
        "ema": None,
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(number))}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "scaler": {},
        "progress": {"update": number},
        "config": config,
        "data": {"training images": "a"},
        "processes": 1,
        "log_bytes": 0,
    }


def number_in(path: Path) -> int:
    return int(read_state(path)[0]["model"]["weight"][0, 0])


def test_last_and_previous(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_state(tmp_path, state(number))
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert number_in(tmp_path) == number_in(tmp_path / "last.ckpt") == 3
    assert number_in(tmp_path / "previous.ckpt") == 2


def test_full_disk(tmp_path: Path) -> None:
    for number in (1, 2):
        write_state(tmp_path, state(number))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a state takes 40 kB
    try:
        with pytest.raises(CheckpointError, match=r"could not write the checkpoint: .*large.*last good .*last\.ckpt"):
            write_state(tmp_path, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert (number_in(tmp_path), number_in(tmp_path / "previous.ckpt")) == (2, 1)


def test_a_run_survives_a_full_disk(
    tiny: Callable[..., TrainConfig], everything_on: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (
        tiny(**{**everything_on, "run.name": name, "run.checkpoint_minutes": 0.0}) for name in ("whole", "broken")
    )
    train(whole)
    save, written = torch.save, 0

    def no_space(content: Any, file: Any) -> None:
        nonlocal written
        written += 1
        if written == 3:
            file.write(b"PK half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_space)
        with pytest.raises(CheckpointError, match=r"No space left on device.*last good checkpoint is .*last\.ckpt"):
            train(broken)
    assert read_state(broken.run_folder)[0]["progress"]["update"] == 2
    train(broken.replace(**{"run.resume": str(broken.run_folder)}))
    ends = [read_state(config.run_folder)[0]["model"] for config in (whole, broken)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_damaged_last_one_is_passed_over(tmp_path: Path) -> None:
    for number in (1, 2):
        write_state(tmp_path, state(number))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    found, file, passed_over = read_state(tmp_path)
    assert (found["progress"]["update"], file.name) == (1, "previous.ckpt")
    assert [str(last) in problem and "damaged" in problem for problem in passed_over] == [True]
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged.*from previous\.ckpt beside it, give the folder"):
        read_state(last)
    last.unlink()
    assert number_in(tmp_path) == 1


def test_killed_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is whole from its first rename on, whichever of the others came through."""
    replace = os.replace

    def killed_before(last: int) -> Callable[[Any, Any], None]:
        count = 0

        def step(source: Any, target: Any) -> None:
            nonlocal count
            count += 1
            if count == last:
                raise KeyboardInterrupt
            replace(source, target)

        return step

    write_state(tmp_path, state(1))
    for number, (last, expected) in enumerate([(1, 1), (2, 3), (3, 4), (2, 5), (9, 6)], start=2):
        monkeypatch.setattr(os, "replace", killed_before(last))
        with contextlib.suppress(KeyboardInterrupt):
            write_state(tmp_path, state(number))
        assert number_in(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    """Anywhere in the file; where the content is the same in spite of it, such as in padding, it may."""
    file = write_state(tmp_path, state(1))
    content, expected = file.read_bytes(), state_digest(read_state(file).state)
    numbers = random.Random(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        changed[numbers.randrange(len(changed))] ^= 1 << numbers.randrange(8)
        file.write_bytes(changed)
        try:
            assert state_digest(read_state(file).state) == expected
        except CheckpointError as error:
            assert "damaged" in str(error) or "not a training checkpoint" in str(error) or "newer version" in str(error)
            refused += 1
    assert refused > 135


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a weight": lambda state: state["model"]["weight"][3, 4].add_(1e-3),
    "a type": lambda state: state["model"].update(weight=state["model"]["weight"].double()),
    "a position": lambda state: state["progress"].update(update=2),
    "the optimiser's state": lambda state: state["optimizer"].update(state={}),
    "a number's type": lambda state: state["progress"].update(update=1.0),
    "an entry more": lambda state: state.update(more=1),
    "no digest": lambda state: state.pop("digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_content_that_is_not_what_was_written(tmp_path: Path, change: str) -> None:
    file = write_state(tmp_path, state(1))
    content = torch.load(file, weights_only=True)
    CHANGES[change](content)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged: its content is not what was written"):
        read_state(file)


FAULTS: dict[str, dict[str, Any]] = {
    "its model must be tensors": {"model": {"weight": 3}},
    "its model must be": {"model": {}},
    "its model must": {"model": [torch.zeros(2)]},
    "in its ema, a is sparse": {"ema": {"a": torch.zeros(2, 2).to_sparse()}},
    "its optimizer must have a state": {"optimizer": {"param_groups": []}},
    "its optimizer must have": {"optimizer": None},
    "its optimizer must have param_groups": {"optimizer": {"state": {}, "param_groups": {}}},
    "its scaler must be": {"scaler": 1},
    "its config must be": {"config": "x"},
    "its data must be": {"data": {1: "a"}},
    "its processes must be a count, got '0'": {"processes": 0},
    "its log_bytes must be a count, got '-1'": {"log_bytes": -1},
    "its update must be a count, got 'nan'": {"progress": {"update": float("nan")}},
    "its format is '0'": {"format": 0},
    "its format is 'True'": {"format": True},
}


@pytest.mark.parametrize("message", FAULTS)
@pytest.mark.filterwarnings("ignore")  # torch's, about sparse tensors
def test_parts_that_cannot_be_a_runs(tmp_path: Path, message: str) -> None:
    torch.save({"format": 1, **state(1), **FAULTS[message]}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: damaged: {message}"):
        read_state(tmp_path / "x.ckpt")


def test_a_checkpoint_of_the_first_format(tmp_path: Path) -> None:
    torch.save({"format": 1, **state(5)}, tmp_path / "last.ckpt")
    assert number_in(tmp_path) == 5
    identity = {"training images": "a", "contents of the training images": "b"}
    refuse_changes(read_state(tmp_path).state, TrainConfig(), identity)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last.ckpt")
    for path in (tmp_path, tmp_path / "last.ckpt"):
        with pytest.raises(CheckpointError, match=r"last\.ckpt: is a named pipe"):
            read_state(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["optimizer"].update(state={}), "optimizer does not fit this run: its state is missing"),
        (lambda state: state["optimizer"].update(param_groups=[]), "optimizer does not fit this run"),
        (lambda state: state.update(ema=None), "ema does not fit this run: it is missing"),
        (lambda state: state["model"].popitem(), "model does not fit this run"),
        (lambda state: state["model"].update(pos_embed=state["model"]["pos_embed"].int()), "model does not fit"),
        (lambda state: state["progress"].update(nonsense=1), "progress does not fit this run"),
    ],
)
def test_a_state_that_does_not_fit_the_run(
    tiny: Callable[..., TrainConfig], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Of the first format, which had no digest to tell."""
    config = tiny(**{"schedule.epochs": 1, "ema.decay": 0.9})
    train(config)
    content = read_state(config.run_folder).state
    change(content)
    torch.save({**content, "format": 1}, config.run_folder / "last.ckpt")
    (config.run_folder / "previous.ckpt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=message):
        train(config.replace(**{"run.resume": str(config.run_folder)}))


def test_images_swapped_under_the_same_names(tiny: Callable[..., TrainConfig], images: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(images, tmp_path / "copied"))
    config = tiny(**{"schedule.epochs": 1, "data.path": str(copied)})
    train(config)
    again = config.replace(**{"run.resume": str(config.run_folder)})
    train(again.replace(**{"data.path": str(copied.rename(tmp_path / "moved"))}))
    one, other = (tmp_path / "moved" / "train" / "grey0" / name for name in ("00.png", "01.png"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ConfigError, match="the contents of the training images differ"):
        train(again.replace(**{"data.path": str(tmp_path / "moved")}))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile-code-ran",)


def test_files_that_are_no_training_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint \(last\.ckpt\) here"):
        read_state(tmp_path)
    file = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_state(file)
    contents = {"empty": b"", "text": b"hello world", "hostile": pickle.dumps({"model": Hostile()}, protocol=2)}
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged, or not a training checkpoint\.$"):
            read_state(file)
    torch.save({"model": Hostile()}, file)
    with pytest.raises(CheckpointError, match="damaged, or not a training checkpoint"):
        read_state(file)
    assert not (tmp_path / "hostile-code-ran").exists()
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    with pytest.raises(CheckpointError, match=r"not a training checkpoint of this library.*model\.checkpoint"):
        read_state(file)
    torch.save({**state(1), "format": checkpoint.FORMAT + 1}, file)
    with pytest.raises(CheckpointError, match="written by a newer version"):
        read_state(file)


@pytest.mark.parametrize("hidden", [Hostile(), BytesStorageMetadata()])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_index_of_a_shared_state_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: object
) -> None:
    """Nor does torch unpickle on its behalf a tensor that it calls a plain value."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "last.ckpt"
    write_folder(folder, {"format": checkpoint.FORMAT, **state(3)}, Processes(0, 1, torch.device("cpu")))
    assert int(read_state(tmp_path).filled()["model"]["weight"][0, 0]) == 3
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.state_dict_metadata["model/weight"] = hidden
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    record = torch.load(folder / "run.pt", weights_only=True)
    record["files"][".metadata"] = hashlib.blake2b((folder / ".metadata").read_bytes(), digest_size=32).hexdigest()
    torch.save(record, folder / "run.pt")
    name = "posix.system" if isinstance(hidden, Hostile) else r"torch\.distributed\.\S*\.BytesStorageMetadata"
    with pytest.raises(
        CheckpointError, match=rf"last\.ckpt/\.metadata asks for {name}, which the state of a run never"
    ):
        read_state(tmp_path).filled()
    assert not (tmp_path / "hostile-code-ran").exists()


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        ({"run.device": "cuda", "data.workers": 7, "run.checkpoint_minutes": 1.0, "run.output": "elsewhere"}, True),
        ({"model.grad_checkpointing": True, "schedule.cooldown_epochs": 4}, True),
        ({"schedule.epochs": 31}, False),
        ({"run.seed": 1}, False),
        ({"run.amp": "bf16"}, False),
        ({"model.options": {"class_token": "head"}}, False),
        ({"data.val_fraction": 0.3}, False),
    ],
)
def test_what_may_change(overrides: dict[str, Any], allowed: bool) -> None:
    config = TrainConfig().replace(**overrides)
    if allowed:
        refuse_changes(state(1), config, {"training images": "a"})
        return
    with pytest.raises(ConfigError, match=f"{next(iter(overrides))} was "):
        refuse_changes(state(1), config, {"training images": "a"})


@pytest.mark.parametrize(
    ("schedule", "change", "refused"),
    [
        ({"name": "constant"}, {"epochs": 40}, None),
        ({"name": "step", "drops": [8]}, {"epochs": 40}, None),
        ({"name": "step", "drops": [8]}, {"drops": [9]}, r"schedule\.drops was \[8\.0\] and is \[9\.0\]"),
        ({"name": "poly"}, {"epochs": 40}, r"schedule\.epochs was 30 and is 40"),
        ({"name": "poly", "updates": 90}, {"cooldown_epochs": 1}, None),
        ({"name": "constant", "updates": 90}, {"updates": 100}, r"schedule\.updates was 90 and is 100"),
        (
            {"name": "constant"},
            {"updates": 100},
            r"schedule\.epochs was 30 and is None; schedule\.updates was None and is 1",
        ),
        ({"name": "cosine"}, {"warmup_updates": 3}, r"schedule\.warmup_updates was 0 and is 3"),
    ],
)
def test_what_may_change_of_a_schedule(schedule: dict[str, Any], change: dict[str, Any], refused: str | None) -> None:
    before = TrainConfig.load(None, {f"schedule.{key}": value for key, value in schedule.items()})
    after = before.replace(**{f"schedule.{key}": value for key, value in change.items()})
    saved = {**state(1), "config": before.to_dict()}
    if refused is None:
        refuse_changes(saved, after, {"training images": "a"})
        return
    with pytest.raises(ConfigError, match=refused):
        refuse_changes(saved, after, {"training images": "a"})


def test_a_checkpoint_from_before_there_were_lengths_in_updates() -> None:
    saved = state(1)
    for key in ("updates", "warmup_updates", "power", "drops", "drop_factor"):
        del saved["config"]["schedule"][key]
    refuse_changes(saved, TrainConfig(), {"training images": "a"})
    with pytest.raises(ConfigError, match=r"schedule\.power was 1\.0 and is 2\.0"):
        refuse_changes(saved, TrainConfig().replace(**{"schedule.power": 2.0}), {"training images": "a"})


def test_other_data_are_another_run() -> None:
    with pytest.raises(ConfigError, match="the training images differ"):
        refuse_changes(state(1), TrainConfig(), {"training images": "b"})
