"""Evaluation: scores counted by hand, and classes matched by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from vision_ssm.data.labelled.sources import open_dataset
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.classes import imagenet_names, match_classes
from vision_ssm.tasks.registry import find_task
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import open_model


def test_scores(weights: Path, colour_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = colour_folder()
    Image.new("RGB", (8, 8), "green").save(root / "red" / "wrong.png")
    seen = []
    result = evaluate(weights, root, batch_size=4, on_progress=lambda done, total: seen.append((done, total)))
    assert (result.count, result.scores["top1"]) == (13, pytest.approx(12 / 13))
    assert result.meter.class_names == ("blue", "green", "red")
    assert result.meter.per_class == [1.0, 1.0, pytest.approx(0.8)]
    assert result.meter.confusion.tolist() == [[4, 0, 0], [0, 4, 0], [0, 1, 4]]
    (mistake,) = [guess for guess in result.meter.guesses if guess.true != guess.predicted]
    assert open_dataset(root, "val").paths[mistake.position].endswith("wrong.png")
    assert (mistake.true, mistake.predicted) == (2, 1)
    assert seen == [(4, 13), (8, 13), (12, 13), (13, 13)]
    result.write(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["confusion"][2] == [0, 1, 4]


def test_scores_of_classes_and_the_mistakes(weights: Path, colour_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = colour_folder()
    Image.new("RGB", (8, 8), "green").save(root / "red" / "wrong.png")
    result = evaluate(weights, root)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["images"] == [4, 4, 5]
    assert found["precision"] == [1, pytest.approx(4 / 5), 1]
    assert found["recall"] == [1, 1, pytest.approx(4 / 5)]
    assert found["f1"] == [1, pytest.approx(8 / 9), pytest.approx(8 / 9)]
    assert found["means"]["f1"] == pytest.approx(25 / 27)
    (mistake,) = found["mistakes"]
    assert mistake["path"].endswith("wrong.png")
    assert (mistake["true"], mistake["predicted"]) == ("red", "green")
    assert sum(row["images"] for row in found["calibration"]["bins"]) == 13
    drawn = result.draw(tmp_path / "pictures")
    assert {path.name for path in drawn} == set(find_task("classification").pictures)
    assert all(path.stat().st_size for path in drawn)


def test_same_scores_with_workers_and_an_open_data_set(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder()
    one, other = (
        evaluate(loaded, root, "all", workers=2, batch_size=5),
        evaluate(loaded, open_dataset(root, "all"), batch_size=5),
    )
    assert one.to_dict() == other.to_dict()
    assert one.meter.guesses == other.meter.guesses


def test_at_own_size(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder("red", count=2)
    Image.new("RGB", (31, 17), "red").save(root / "red" / "large.png")
    result = evaluate(loaded, root, img_size="native", batch_size=8)
    assert (result.count, result.scores["top1"]) == (3, 1.0)
    size = (17, 31)
    image = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, *size)
    with torch.inference_mode():
        expected = loaded.model(image).softmax(1).max()
    assert result.meter.guesses[2].probability == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ConfigError, match="'native', got 'own'"):
        evaluate(loaded, root, img_size="own")


def test_what_was_an_attribute_says_where_it_is(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    result = evaluate(loaded, colour_folder("red"))
    with pytest.raises(AttributeError, match=r"Evaluation.top1 is now Evaluation.scores\['top1'\]"):
        _ = result.top1
    with pytest.raises(AttributeError, match=r"Evaluation.confusion is now Evaluation.meter.confusion"):
        _ = result.confusion
    with pytest.raises(AttributeError, match="no attribute 'tp1'"):
        _ = result.tp1


def test_data_with_fewer_classes_is_matched_by_name(
    loaded: Loaded, colour_folder: Callable[..., Path], tmp_path: Path
) -> None:
    result = evaluate(loaded, colour_folder("red", "green"))
    assert result.scores["top1"] == 1.0
    result.write(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["per_class"][0] is None


def test_unknown_classes_are_named(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    message = r"1 of the data's 2 classes .*'blu'; not in the data: 'blue', 'green'.*Did you mean 'blue'\?"
    with pytest.raises(DataError, match=message):
        evaluate(loaded, colour_folder("blu", "red"))


def test_training_images_are_not_counted(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder(count=10)
    tree = root.rename(root.with_name("pictures"))
    seen = open_dataset(tree, "train", val_fraction=0.1).fingerprint
    trained = Loaded(loaded.model, dataclasses.replace(loaded.info, val_fraction=0.1, trained_on=seen))
    for split, count in ((None, 3), ("val", 3), ("test", 3), ("train", 27)):
        found = evaluate(trained, tree, split)
        assert (found.split, found.count, found.of) == (split or "val", count, 30)
    assert evaluate(trained, tree, "all").of is None
    assert evaluate(trained, tree.rename(root.with_name("moved"))).count == 3


def test_a_split_is_not_invented_for_new_data(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder(count=10)
    tree = root.rename(root.with_name("pictures"))
    other = Loaded(loaded.model, dataclasses.replace(loaded.info, val_fraction=0.1, trained_on="other images"))
    for given in (loaded, other):
        found = evaluate(given, tree)
        assert (found.split, found.count, found.of) == ("all", 30, None)
        for split in ("val", "test", "train"):
            with pytest.raises(DataError, match=f"has no part called {split}, and these weights were not trained on"):
                evaluate(given, tree, split)
        found = evaluate(given, tree, val_fraction=0.5)
        assert (found.split, found.count, found.of) == ("val", 15, 30)
    older = Loaded(loaded.model, dataclasses.replace(loaded.info, val_fraction=0.1))
    assert evaluate(older, tree, "val").count == 3


def test_one_image_per_class_can_be_scored(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder(count=1)
    assert evaluate(loaded, root.rename(root.with_name("pictures"))).count == 3


def test_parts_of_the_data_are_scored_as_they_are(loaded: Loaded, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder(count=2).parent
    for name in ("blue", "green", "red"):
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), name).save(root / "train" / name / "a.png")
    for split, count in ((None, 6), ("val", 6), ("train", 3), ("all", 9)):
        found = evaluate(loaded, root, split)
        assert (found.count, found.of) == (count, None)


def test_refused_numbers_and_broken_weights(loaded: Loaded, weights: Path, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder("red")
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        evaluate(loaded, root, batch_size=0)
    broken = open_model(weights)
    with torch.no_grad():
        broken.model.head.weight.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate(broken, root)


def test_imagenet_folders_may_be_named_by_synset() -> None:
    names = imagenet_names()
    assert (len(names), names[0], names[999]) == (
        1000,
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert match_classes(names, ["n01443537", "n01440764"]) == [1, 0]
    assert match_classes(names, ["goldfish, Carassius auratus"]) == [1]


def test_a_published_checkpoint_by_model_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create_model("vim_nano", num_classes=1000)
    torch.save({"model": model.state_dict()}, tmp_path / "published.pth")
    for synset in ("n01440764", "n01443537"):
        (tmp_path / "test" / synset).mkdir(parents=True)
        Image.new("RGB", (40, 40), "olive").save(tmp_path / "test" / synset / "a.png")
    options = {"num_classes": 1000}
    opened = open_model(tmp_path / "published.pth", model="vim_nano", model_options=options)
    result = evaluate(opened, tmp_path / "test")
    assert result.count == 2
    assert [guess.true for guess in result.meter.guesses] == [0, 1]
    assert result.meter.class_names == imagenet_names()
