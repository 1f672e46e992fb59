"""What a run finds in its data before the first update, and what it leaves out."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_ssm.errors import DataError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.training import opening, train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event, Notice, RunStarted, StepDone
from vision_ssm.training.state import read_state

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """Of 40 images to train on two are no use, one of 11 held-out ones."""
    folder = shutil.copytree(images, tmp_path / "damaged")
    truncated = folder / "train" / "grey0" / "05.png"
    truncated.write_bytes(truncated.read_bytes()[:-60])
    (folder / "train" / "grey2" / "03.png").write_bytes(b"")
    (folder / "val" / "grey1" / "01.png").write_text("no image")
    return folder


def test_what_cannot_be_read_ends_a_run_before_it_begins(tiny: Tiny, damaged: Path) -> None:
    config = tiny(**{"data.path": str(damaged)})
    with pytest.raises(DataError) as caught:
        train(config)
    for part in ("05.png", "03.png': the file is empty", "01.png", "data check", "--skip-unreadable"):
        assert part in str(caught.value)
    assert not config.run_folder.exists()


def test_what_the_quick_look_has_missed_says_the_same(
    tiny: Tiny, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_quick_look", lambda parts: None)
    with pytest.raises(DataError, match=r"0[35]\.png.*: --skip-unreadable \(data\.skip_unreadable\)\."):
        train(tiny(**{"data.path": str(damaged)}))


def test_the_quick_look_reads_some_of_many_and_finds_empty_files_among_all(
    images: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "QUICK_SAMPLES", 8)

    class Counted:
        paths = tuple(str(damaged / "train" / "grey2" / f"{number:02}.png") for number in range(13))

        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> None:
            self.read.append(index)

    samples: Any = Counted()
    with pytest.raises(DataError, match=r"03\.png': the file is empty"):
        opening._quick_look([samples])
    assert sorted(samples.read) == [0, 2, 4, 6, 8, 10, 12]


def test_unreadable_files_are_left_out_and_told(tiny: Tiny, damaged: Path) -> None:
    config = tiny(**{"data.path": str(damaged), "data.skip_unreadable": True})
    seen: list[Event] = []
    train(config, on_event=seen.append)
    started = next(event for event in seen if isinstance(event, RunStarted))
    assert (started.train_images, started.val_images) == (38, 10)
    told = next(event.message for event in seen if isinstance(event, Notice))
    assert told.startswith("Left out, as they cannot be read: 2 of the images to train on, 1 of those held out")
    skipped = json.loads((config.run_folder / "skipped.json").read_text())
    assert [Path(path).name for path in skipped["train"]] == ["05.png", "03.png"]
    assert "empty" in list(skipped["train"].values())[1]
    assert [Path(path).name for path in skipped["val"]] == ["01.png"]
    # The same run without these files in the folder.
    for part in skipped.values():
        for path in part:
            Path(path).unlink()
    clean = tiny(**{"data.path": str(damaged), "run.name": "clean"})
    train(clean)
    one, other = (read_state(run.run_folder)[0]["model"] for run in (config, clean))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_resumed_run_leaves_out_what_it_left_out(tiny: Tiny, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = (
        tiny(**{"data.path": str(damaged), "data.skip_unreadable": True, "run.name": name})
        for name in ("whole", "broken")
    )
    train(whole)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.update == 2:
            signal.raise_signal(signal.SIGTERM)

    assert train(broken, on_event=stop).interrupted
    monkeypatch.setattr(opening, "_read", lambda *_: pytest.fail("the files are known"))
    train(broken.replace(**{"run.resume": str(broken.run_folder)}))
    one, other = (read_state(run.run_folder)[0]["model"] for run in (whole, broken))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_evaluation_knows_the_data_that_files_were_left_out_of(tiny: Tiny, tmp_path: Path, damaged: Path) -> None:
    config = tiny(**{"data.path": str(damaged / "train"), "data.skip_unreadable": True, "schedule.epochs": 1})
    best = train(config).best_weights
    assert best is not None
    for name in ("grey0/05.png", "grey2/03.png"):
        shutil.copy(damaged / "train" / "grey1" / "00.png", damaged / "train" / name)
    found = evaluate(best, damaged / "train")
    assert (found.split, found.of) == ("val", 40)


def test_nothing_but_unreadable_files(tiny: Tiny, damaged: Path) -> None:
    for file in (damaged / "val").rglob("0[1-9].png"):
        file.write_bytes(b"")
    for file in (damaged / "val").rglob("00.png"):
        file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"not one of 11 images can be read; the first: .*00\.png"):
        train(tiny(**{"data.path": str(damaged), "data.skip_unreadable": True}))
