"""Data sets of every task come out of shards as they went in."""

from __future__ import annotations

import sys
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.detection import boards
from tests.tasks.segmentation.scenes import folder as scenes
from vision_ssm.data import shards
from vision_ssm.data.loader import EpochLoader
from vision_ssm.data.measuring import measure_bands
from vision_ssm.data.shards import INDEX, Packed, open_shards, write_shards
from vision_ssm.errors import ConfigError, DataError, VisionSSMNotice
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.inference.jobs.references import list_references
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.packing import pack
from vision_ssm.tasks.registry import find_task, looks_like, task_names, task_of
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.weights.shipped import DEFAULT


def classes(root):
    numbers = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = numbers.integers(0, 255, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


def of_task(root, task):
    if task == "detection":
        parts = {part: boards.scenes(3, seed=seed) for seed, part in enumerate(("train", "val"))}
        boards.coco(root, parts, size=(64, 72))
        return root
    if task == "segmentation":
        scenes(root, [f"{part}/{number}" for part in ("train", "val") for number in range(4)])
        for path in (root / "images").rglob("*2.jpg"):  # called as its mask is
            Image.open(path).save(path.with_suffix(".png"))
            path.unlink()
        return root
    return classes(root)


def opened(path, task):
    info = find_task(task)
    return info.load()(from_mapping(info.load_settings(), {"data": {"path": str(path)}}))


def plain(target):
    """Targets of all kinds as what can be compared."""
    if isinstance(target, torch.Tensor):
        return target.tolist()
    if hasattr(target, "boxes"):
        numbers = [getattr(target, name).tolist() for name in ("boxes", "labels", "crowd", "areas")]
        return [*numbers, target.outlines, target.size]
    return target


@pytest.mark.parametrize("task", task_names())
def test_samples_are_those_of_the_folder(tmp_path, task):
    folder, packed = of_task(tmp_path / "data", task), tmp_path / "packed"
    seen = []
    counts = pack(folder, packed, task, shard_bytes=4000, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (sum(counts.values()),) * 2
    assert len(list(packed.glob("train-*.tar"))) > 1
    before, after = opened(folder, task), opened(packed, task)
    assert after.own_splits() == ("train", "val", "test")
    for split in ("train", "val"):
        expected, found = before.open(split), after.open(split)
        assert len(found) == len(expected) == counts[split]
        for index in range(len(expected)):
            (image, target), (other, same) = expected[index], found[index]
            assert np.array_equal(image, other)
            assert plain(target) == plain(same)
        assert found.class_names == expected.class_names
        assert task == "detection" or found.fingerprint == expected.fingerprint  # evaluation knows the data again
    assert len(after.open("all")) == sum(counts.values())
    assert len(list_references([packed], [])) == sum(counts.values())  # masks are no images of a job
    after.prepare(after.open("train"))
    assert find_task(task_of(packed)).packing == find_task(task).packing
    assert looks_like(packed, task) == ""


def test_the_layout_is_that_of_webdataset(tmp_path):
    pack(classes(tmp_path / "data"), tmp_path / "packed", "classification")
    train = opened(tmp_path / "data", "classification").open("train")
    with tarfile.open(tmp_path / "packed" / "train-00000.tar") as archive:
        names = archive.getnames()
        assert names[:2] == [f"00000000{train.paths[0][-4:]}", "00000000.cls"]
        read = [int(archive.extractfile(name).read()) for name in names if name.endswith(".cls")]
    assert read == list(train.targets)
    with pytest.raises(DataError, match="holds shards already; choose another folder"):
        pack(tmp_path / "data", tmp_path / "packed", "classification")
    pack(tmp_path / "data", tmp_path / "again", "classification")
    for path in (tmp_path / "packed").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_batches_are_those_of_the_folder_wherever_the_shards_are(tmp_path):
    """The same order, augmentation and division among processes, from a folder, shards, and an address of them."""
    folder, packed = classes(tmp_path / "data"), tmp_path / "packed"
    pack(folder, packed, "classification", shard_bytes=3000)
    fsspec.filesystem("memory").put(str(packed), "/packed", recursive=True)

    def batches(place, rank, workers):
        task = opened(place, "classification")
        samples = task.open("train")
        task.prepare(samples)
        transform = task.transform(task.preprocessing(torch.nn.Identity()).with_size(8), train=True)
        loader = EpochLoader(
            samples, transform, batch_size=2, train=True, rank=rank, world_size=2, workers=workers, seed=3
        )
        loader.set_position(1, start_batch=1)
        return [(batch.images, batch.targets) for batch in loader]

    for rank in (0, 1):
        expected = batches(folder, rank, 0)
        for place, workers in ((packed, 2 * rank), ("memory://packed", 0)):
            for (images, targets), (same, labels) in zip(expected, batches(place, rank, workers), strict=True):
                assert torch.equal(images, same)
                assert torch.equal(targets, labels)


def test_shards_that_are_damaged_are_named(tmp_path):
    packed = tmp_path / "packed"
    pack(classes(tmp_path / "data"), packed, "classification", shard_bytes=3000)
    tar = packed / "train-00001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-700])
    with pytest.raises(DataError, match=r"the shard '.*train-00001.tar' is truncated: it has .* copy it again"):
        opened(packed, "classification").open("train")
    opened(packed, "classification").open("val")
    tar.unlink()
    with pytest.raises(DataError, match=r"the shard '.*train-00001.tar' is missing; copy it again"):
        opened(packed, "classification").open("train")
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"for the task classification: .* \.cls files, and \.mask\.png files are"):
        opened(packed, "segmentation").open("train")
    assert (
        looks_like(packed, "segmentation")
        == f"This looks like classification ({INDEX} says so): --task classification."
    )
    (packed / "train-00000.json").write_text("[")
    with pytest.raises(DataError, match=r"train-00000.json' is damaged"):
        opened(packed, "classification").open("train")
    (packed / "train-00000.json").unlink()
    with pytest.raises(DataError, match=r"^cannot read '.*train-00000.json': No such file or directory\.$"):
        opened(packed, "classification").open("train")
    with pytest.raises(DataError, match=r"^'memory://nothing' has no shards.json: it is no folder of shards"):
        open_shards("memory://nothing", "train", ".cls")


def test_scores_and_training_name_a_shard_that_is_damaged(tmp_path):
    packed = tmp_path / "packed"
    pack(classes(tmp_path / "data"), packed, "classification", shard_bytes=3000)
    samples = opened(packed, "classification").open("val")
    last = sorted(packed.glob("val-*.tar"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:600])  # while it is in use
    with pytest.raises(DataError, match=rf"{last.name}' is truncated: it ends"):
        samples[len(samples) - 1]
    with pytest.raises(DataError, match=rf"{last.name}' is truncated: it has 600 bytes"):
        evaluate(DEFAULT, packed, split="val")
    last.write_bytes(content)
    first = packed / "train-00000.tar"
    first.unlink()
    values = {
        "data.path": str(packed),
        "model.name": "vim_nano",
        "run.output": str(tmp_path / "runs"),
        "data.workers": 0,
    }
    with pytest.raises(DataError, match=r"train-00000.tar' is missing; copy it again"):
        train(TrainConfig.load(None, values))


def test_a_pack_that_was_ended_leaves_nothing_behind(tmp_path, monkeypatch):
    """The next one may make fewer shards, or others of the same names; tar files of others are not its to remove."""
    data, folder = classes(tmp_path / "data"), tmp_path / "packed"
    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_index", lambda *_, **__: sys.exit("killed"))
        with pytest.raises(SystemExit):
            pack(data, folder, "classification", shard_bytes=3000)
    assert len(list(folder.glob("*.tar"))) > 2
    others = folder / "more.tar"
    others.write_bytes(b"")
    pack(data, folder, "classification")
    lists = {f"{split}-00000.{kind}" for split in ("train", "val") for kind in ("tar", "json")}
    assert {path.name for path in folder.iterdir()} == {INDEX, "more.tar", *lists}
    assert len(list_references([folder], [])) == 16  # what the list names, and nothing else
    fsspec.filesystem("memory").put(str(folder), "/ended", recursive=True)
    assert len(list_references(["memory://ended"], [])) == 16
    (folder / INDEX).unlink()
    before = (folder / "train-00000.tar").read_bytes()
    with pytest.raises(DataError, match=r"train-00000.json' is in the place of a shard .* choose another folder"):
        pack(data, folder, "classification")
    assert (folder / "train-00000.tar").read_bytes() == before


def test_a_held_out_part_alone_stays_one(tmp_path):
    """What is called so is scored as a whole; nothing of it is to be trained on."""
    assert pack(classes(tmp_path / "val"), tmp_path / "packed", "classification") == {"val": 16}
    after = opened(tmp_path / "packed", "classification")
    assert after.own_splits() == ("val", "test")
    assert len(after.open("test")) == len(after.open("all")) == 16
    with pytest.raises(DataError, match="have no split 'train'; they have val"):
        after.open("train")


def as_scenes(root):
    """Turn the pictures of images into scenes of four bands, some of whose pixels hold no data."""
    made = pytest.importorskip("tests.data.geo.made")
    numbers = np.random.default_rng(1)
    for path in [*root.rglob("*.png"), *root.rglob("*.jpg")]:
        if "annotations" not in path.parts:
            width, height = Image.open(path).size
            values = numbers.integers(1, 4000, (4, height, width)).astype(np.uint16)
            values[:, :3, :5] = 0
            made.write_scene(path.with_suffix(".tif"), values, photometric="MINISBLACK", nodata=0)
            path.unlink()
    for path in (root / "annotations").glob("*.json"):
        path.write_text(path.read_text().replace(".png", ".tif"))
    return root


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_scenes_are_those_of_the_folder(tmp_path, task):
    folder, packed = as_scenes(of_task(tmp_path / "data", task)), tmp_path / "packed"
    pack(folder, packed, task)
    before, after = opened(folder, task), opened(packed, task)
    expected, found = before.open("train"), after.open("train")
    for index in range(len(expected)):
        (image, target), (other, same) = expected[index], found[index]
        assert np.array_equal(image.values, other.values)
        assert np.array_equal(image.valid, other.valid)
        assert (image.bands, image.samples) == (other.bands, other.samples)
        assert plain(target) == plain(same)
    for chosen in (slice(None), slice(1, None, 2)):
        positions = range(len(expected))[chosen]
        parts = [task.subset(samples, positions) for task, samples in ((before, expected), (after, found))]
        assert measure_bands(parts[0]) == measure_bands(parts[1]) is not None
    after.prepare(found)
    assert measure_bands(opened(packed, task).adopt(found)) == measure_bands(expected)


def test_scenes_that_need_files_beside_them(tmp_path):
    """Coordinates in one are left behind; what changes the samples is refused."""
    made = pytest.importorskip("tests.data.geo.made")
    folder = classes(tmp_path / "data")
    values = made.values_of("uint8", 3)
    path = made.write_scene(folder / "cat" / "a.tif", values, crs=None, transform=None, photometric="RGB")
    path.with_suffix(".tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    with pytest.warns(VisionSSMNotice, match=r"left out .* files of other formats \(1 .tfw\)"):
        pack(folder, tmp_path / "packed", "classification")
    found = opened(tmp_path / "packed", "classification").open("all")
    (place,) = (at for at, name in enumerate(found.paths) if name.endswith("a.tif"))
    assert found.scenes == tuple(at == place for at in range(len(found)))
    assert np.array_equal(found[place][0].values, values.transpose(1, 2, 0))
    with made.rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), made.rasterio.open(path, "r+") as scene:
        scene.write_mask(np.eye(*values.shape[1:], dtype=bool))
    assert path.with_name("a.tif.msk").exists()
    with pytest.raises(DataError, match=r"a.tif' is read otherwise without a.tif.msk beside it, .* into one file"):
        pack(folder, tmp_path / "again", "classification")
    assert not (tmp_path / "again" / INDEX).exists()


def test_what_fails_on_the_way_leaves_no_data_set(tmp_path):
    def samples():
        yield Packed("a.png", b"x", b"0", 0)
        raise DataError("cannot read image 'b.png'")

    with pytest.raises(DataError, match=r"b\.png"):
        write_shards(tmp_path, {"train": ("", samples())}, task="t", suffix=".cls", name="n", about={})
    assert [path.name for path in tmp_path.iterdir()] == [".packing"]
    with pytest.raises(ConfigError, match="at least one byte, got 0"):
        pack(tmp_path, tmp_path / "out", "classification", shard_bytes=0)
