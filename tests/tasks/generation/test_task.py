"""Generation through the one engine, the weights file, evaluation and sampling."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vision_ssm
from tests.tasks.generation.toys import CLASSES, Oracle, tiny, write_images
from vision_ssm.data.batches import Batch
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.tasks.generation.settings import GenerationSettings
from vision_ssm.tasks.generation.task import Generation
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.weights.files import Loaded, WeightsInfo

RECORD = {"class_names": list(CLASSES), "latents": None, "schedule": "linear"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(images, tmp_path_factory.mktemp("runs"))).folder


@pytest.fixture(scope="module")
def judge(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that tells dark from light."""
    wanted = {
        "model.name": "vim_nano",
        "model.img_size": 8,
        "model.options": {"patch_size": 4, "embed_dim": 32, "depth": 1},
        "data.path": str(images),
        "data.batch_size": 8,
        "data.workers": 0,
        "schedule.epochs": 6,
        "optim.lr": 1e-2,
        "run.output": str(tmp_path_factory.mktemp("judges")),
        "run.device": "cpu",
    }
    result = train(TrainConfig.load(None, wanted))
    assert result.best_scores["top1"] == 1
    return result.folder


def oracle(names: tuple[str, str] = CLASSES) -> Loaded:
    """Weights that make images of just the two greys."""
    half = (0.5, 0.5, 0.5)
    prepared = Preprocessing((3, 8, 8), mean=half, std=half, crop_pct=1.0)
    record = {**RECORD, "class_names": list(names)}
    return Loaded(Oracle().eval(), WeightsInfo("oracle", {}, "generation", record, prepared, source="oracle"))


def test_what_a_run_leaves(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step_done"]
    assert set(steps[0]["losses"]) == {"noise", "variance"}
    epoch = next(line for line in lines if line["event"] == "epoch_done")
    assert set(epoch["ema_scores"]) == {"loss"}
    assert Image.open(run / "samples.png").width > 8
    info = vision_ssm.load_model(run).info
    assert (info.task, info.class_names, info.preprocessing.input_size) == ("generation", CLASSES, (3, 8, 8))


def test_a_resumed_run_ends_with_the_same_bits(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)
    config = tiny(images, tmp_path, **{"data.mirror": True, "run.checkpoint_minutes": 0})
    whole = train(config).folder

    class Stopped(Exception):
        pass

    def stop(event: object) -> None:
        if type(event).__name__ == "CheckpointWritten" and event.update == 3:  # type: ignore[attr-defined]
            raise Stopped

    cut = config.replace(**{"run.name": "cut"})
    with pytest.raises(Stopped):
        train(cut, on_event=stop)
    resumed = train(cut.replace(**{"run.resume": str(tmp_path / "cut")})).folder
    for name in ("best", "last"):
        there, here = (load_file(folder / f"{name}.safetensors") for folder in (whole, resumed))
        assert all(torch.equal(there[key], here[key]) for key in there)


def test_the_held_out_error_is_the_same_each_time_and_whatever_the_batch() -> None:
    task = Generation.restore(RECORD, GenerationSettings())
    model = Oracle((0.0, 0.9)).eval()
    pictures = torch.rand(6, 3, 8, 8) * 2 - 1
    labels, at = torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(6)

    def errors(rows: slice) -> torch.Tensor:
        sizes = torch.full((6, 2), 8)
        batch = Batch(pictures[rows], labels[rows], sizes[rows], at[rows])
        with torch.no_grad():
            return task.predict(model, batch).errors

    torch.testing.assert_close(torch.cat([errors(slice(0, 2)), errors(slice(2, 6))]), errors(slice(0, 6)))


def test_evaluation_compares_samples_with_images(images: Path, judge: Path) -> None:
    options = {"sampler": "ddim", "steps": 2, "samples": 8}
    found = vision_ssm.evaluate(oracle(), images, "all", classifier=str(judge), features=str(judge), **options)
    assert [score.name for score in found.named] == ["frechet", "agreement", "loss"]
    assert found.scores["agreement"] == 1
    assert found.count == 20
    told = found.to_dict()
    assert told["samples"] == 8
    assert told["features"] == {"weights": str(judge / "best.safetensors"), "numbers": 32, "is_fid": False}
    assert told["classifier"]["agreement"] == {"dark": 1, "light": 1}
    swapped = Loaded(Oracle((0.5, -0.5)).eval(), oracle().info)
    worse = vision_ssm.evaluate(swapped, images, "all", classifier=str(judge), features=str(judge), **options)
    assert worse.scores["agreement"] == 0
    grey = Loaded(Oracle((0.0, 0.0)).eval(), oracle().info)
    worse = vision_ssm.evaluate(grey, images, "all", features=str(judge), **options)
    assert worse.scores["frechet"] > 2 * found.scores["frechet"]
    assert "agreement" not in worse.scores


def test_samples_to_be_judged_fill_their_batches(run: Path, images: Path, judge: Path) -> None:
    loaded, sizes, told = vision_ssm.load_model(run), [], []
    loaded.model.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    options = {"sampler": "ddim", "steps": 2}
    found = vision_ssm.evaluate(
        loaded,
        images,
        "all",
        batch_size=8,
        samples=10,
        features=str(judge),
        on_progress=lambda *done: told.append(done),
        **options,
    )
    assert sizes == [8, 8, 4, *(8, 8), *(2, 2)]  # of 20 images, then 10 samples in two batches of two steps
    assert told == [(8, 20), (16, 20), (20, 20), (1, 4), (2, 4), (3, 4), (4, 4)]
    places = [made.position for made in found.meter.made]
    assert len(set(places)) == 10 and [made.label for made in found.meter.made] == [0] * 5 + [1] * 5
    again = vision_ssm.sample(loaded, "light", seed=places[-1], **options).images[0]
    difference = np.abs(np.asarray(again, int) - np.asarray(found.meter.shown[1][-1], int))
    assert difference.max() <= 1


def test_the_shipped_features_are_named_and_not_called_fid(run: Path, images: Path, tmp_path: Path) -> None:
    found = vision_ssm.evaluate(run, images, sampler="ddim", steps=2, samples=2)
    assert found.named[0].title == "Fréchet distance in features of vim_nano_cifar10 (not FID)"
    assert ("compared in", "features of vim_nano_cifar10: a distance in them is not FID") in found.meter.tables()[
        0
    ].rows
    assert [path.name for path in found.draw(tmp_path)] == ["samples.png"]


def test_a_sample_is_its_class_its_seed_and_nothing_beside_it(run: Path) -> None:
    together = vision_ssm.sample(run, count=3, seed=5, steps=3, sampler="ddim", guidance=2)
    assert [(made.class_name, made.seed) for made in together.results] == [
        (name, seed) for name in CLASSES for seed in (5, 6, 7)
    ]
    alone = vision_ssm.sample(run, "light", seed=6, steps=3, sampler="ddim", guidance=2).images[0]
    difference = np.abs(np.asarray(alone, int) - np.asarray(together.images[4], int))
    assert difference.max() <= 1  # other sums of the matrix products
    assert not np.array_equal(together.images[4], together.images[5])


def test_what_was_asked_for_is_what_is_made() -> None:
    made = vision_ssm.sample(oracle(), ["light", "dark"], count=2, steps=2, sampler="ddim")
    assert [round(float(np.mean(image))) for image in made.images] == [191, 191, 64, 64]
    everything = vision_ssm.sample(oracle(), steps=4, batch_size=1)
    assert [round(float(np.mean(image)) / 64) for image in everything.images] == [1, 3]


def test_classes_of_one_name_are_told_apart_by_number(tmp_path: Path) -> None:
    cranes = oracle(("crane", "crane"))  # ImageNet has two
    with pytest.raises(ConfigError, match="'crane' is the name of classes 0 and 1, counted from 0: give the number"):
        vision_ssm.sample(cranes, "crane")
    made = vision_ssm.sample(cranes, ["1", 0], steps=2, sampler="ddim")
    assert [round(float(np.mean(image))) for image in made.images] == [191, 64]
    everything = vision_ssm.sample(cranes, steps=2, sampler="ddim")
    assert [(each.class_name, each.label) for each in everything.results] == [("crane", 0), ("crane", 1)]
    everything.write_images(tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert everything.picture().height > vision_ssm.sample(cranes, "0", steps=2, sampler="ddim").picture().height


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (
            {"classes": "drak"},
            ConfigError,
            r"these weights know no class 'drak'\. Did you mean 'dark'\? They know dark,",
        ),
        ({"classes": 2}, ConfigError, r"these weights know no class 2\."),
        ({"classes": [-1]}, ConfigError, r"these weights know no class -1\."),
        ({"classes": []}, ConfigError, r"no class was asked for"),
        ({"count": 0}, ConfigError, r"count and batch_size must be at least 1, got 0 and 32"),
        ({"seed": -1}, ConfigError, r"seed must be a whole number from 0 and below 2\^63, got -1"),
        ({"guidance": -1.0}, ConfigError, r"guidance must be at least 0, got -1\.0"),
        ({"steps": 1001}, ConfigError, r"steps must be at least 2 and at most 1000, got 1001"),
        ({"stpes": 10}, ConfigError, r"unknown setting 'stpes'\. Did you mean 'steps'"),
    ],
)
def test_samples_that_cannot_be_made(wrong: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        vision_ssm.sample(oracle(), **wrong)  # type: ignore[arg-type]


def test_models_and_weights_of_other_tasks_are_refused(images: Path, judge: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"vim_nano tells no noise, so it makes no images\. .*Models that do: dig_nano"
    ):
        train(tiny(images, tmp_path, **{"model.name": "vim_nano", "model.options": {}}))
    with pytest.raises(CheckpointError, match=r"holds weights of the task classification, which sample cannot use"):
        vision_ssm.sample(judge)
    with pytest.raises(CheckpointError, match=r"weights of the task generation, which predict cannot use; use "):
        vision_ssm.predict(run, [str(images / "dark" / "0.png")])
    with pytest.raises(CheckpointError, match=r"which features cannot use"):
        vision_ssm.evaluate(run, images, features=str(run), steps=2)
    with pytest.raises(DataError, match=r"unknown to the weights: 'dark', 'light'.* Ask a classifier of the same"):
        vision_ssm.evaluate(run, images, classifier="vim_nano_cifar10", steps=2)


def test_the_data_must_be_of_the_classes_of_the_weights(run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)
    (tmp_path / "images" / "light").rename(tmp_path / "images" / "lihgt")
    with pytest.raises(DataError, match=r"'lihgt'.*Did you mean 'light'"):
        vision_ssm.evaluate(run, tmp_path / "images", steps=2)


def test_samples_that_are_not_finite_are_no_images() -> None:
    with pytest.raises(CheckpointError, match=r"the samples are not finite"):
        vision_ssm.sample(Loaded(Oracle((float("nan"), 0.0)).eval(), oracle().info), steps=2, sampler="ddim")


def test_published_checkpoints_are_of_imagenet() -> None:
    model = vision_ssm.create_model("dig_s2", embed_dim=16, depth=2, head_dim=16)
    task = Generation.restore(Generation.published_record(model), GenerationSettings())
    assert (len(task.class_names), task.class_names[1].split(",")[0]) == (1000, "goldfish")
    assert task.latents is not None
    assert (task.latents.autoencoder, task.latents.scale) == ("stabilityai/sd-vae-ft-ema", 0.18215)
    assert task.preprocessing(model).input_size == (3, 256, 256)


@pytest.mark.parametrize("wrong", [{"class_names": "dark"}, {"class_names": [1]}, {"latents": 3}, {"schedule": 1}])
def test_a_damaged_record(wrong: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"a generator's record"):
        Generation.restore({**RECORD, **wrong}, GenerationSettings())
