"""Weights files: complete, strict, never half written, and never a way to run code."""

from __future__ import annotations

import dataclasses
import errno
import json
import pickle
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ShapeError
from vision_ssm.inference.predict import predict
from vision_ssm.models.described import check_described
from vision_ssm.models.registry import create_model
from vision_ssm.models.variant import all_variants
from vision_ssm.weights.files import Loaded, WeightsInfo, load_weights, read_info, require_command, save_weights
from vision_ssm.weights.opening import open_model


def test_round_trip(weights: Path, loaded: Loaded) -> None:
    model, info = load_weights(weights)
    assert info == dataclasses.replace(loaded.info, source=str(weights))
    assert not model.training
    state = loaded.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert read_info(weights) == info
    with safetensors.safe_open(weights, framework="pt") as file:
        assert json.loads(file.metadata()["vision_ssm"])["model"] == "vim_nano"


def test_any_length_of_the_description(weights: Path, loaded: Loaded) -> None:
    """Of 32 files one begins with the byte that a pickle begins with: the length of its header."""
    starts = set()
    for padding in range(0, 256, 8):
        metadata = {"vision_ssm": loaded.info.to_json(), "padding": "x" * padding}
        safetensors.torch.save_file(loaded.model.state_dict(), weights, metadata=metadata)
        starts.add(weights.read_bytes()[0])
        assert read_info(weights).model == "vim_nano"
    assert 0x80 in starts


def test_a_file_of_the_first_layout(weights: Path, loaded: Loaded) -> None:
    """Every file was a classifier's then, and its names of classes lay beside the task."""
    with safetensors.safe_open(weights, framework="pt") as file:
        fields = json.loads(file.metadata()["vision_ssm"])
    old = {**fields, "format": 1, **fields.pop("record")}
    old["model_options"]["num_classes"] = 3
    del old["record"]
    safetensors.torch.save_file(safetensors.torch.load_file(weights), weights, metadata={"vision_ssm": json.dumps(old)})
    model, info = load_weights(weights)
    assert info.task == "classification"
    assert info.class_names == loaded.info.class_names
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), loaded.model(images))


def test_a_command_that_cannot_use_a_task_names_one_that_can(loaded: Loaded) -> None:
    require_command(loaded.info, "predict")
    with pytest.raises(CheckpointError, match=r"which sample cannot use; use `vision-ssm train` or"):
        require_command(loaded.info, "sample")


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
    save_weights(tmp_path / "a.safetensors", model, info=WeightsInfo("x", {}, "classification", {}, Preprocessing()))
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_failed_write_leaves_the_old_file(weights: Path, loaded: Loaded) -> None:
    before = weights.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write '.*best\.safetensors': File too large"):
            save_weights(weights, loaded.model, info=loaded.info)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]


def test_a_full_disk_is_named(weights: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_weights(weights, loaded.model, info=loaded.info)
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]


def test_output_folder_not_writable(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write '.*file/a\.safetensors': (Not a directory|File exists)"):
        save_weights(tmp_path / "file" / "a.safetensors", loaded.model, info=loaded.info)


def test_an_option_that_json_cannot_hold(tmp_path: Path, loaded: Loaded) -> None:
    info = WeightsInfo("vim_nano", {"norm": nn.LayerNorm}, "classification", {}, Preprocessing())
    with pytest.raises(CheckpointError, match="cannot be stored as JSON"):
        save_weights(tmp_path / "a.safetensors", loaded.model, info=info)
    assert not list(tmp_path.iterdir())


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder; give the weights file"):
        load_weights(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\)"):
        load_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
def test_truncated(weights: Path, share: float) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"best\.safetensors.*truncated"):
        load_weights(weights)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "picture.safetensors"
    path.write_bytes(b"GIF89a" + bytes(range(200)))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_weights(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"without this library's description.*--model NAME"):
        load_weights(tmp_path / "a.safetensors")


def test_published_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "vim.pth")
    with pytest.raises(CheckpointError, match=r"is a PyTorch checkpoint.*--model NAME"):
        load_weights(tmp_path / "vim.pth")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.witness), "w"))


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
@pytest.mark.parametrize("bare", [False, True])
def test_hostile_pickles_are_never_executed(tmp_path: Path, name: str, bare: bool) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / name
    if bare:
        path.write_bytes(pickle.dumps(Hostile(witness), protocol=2))
    else:
        torch.save({"model": Hostile(witness)}, path)
    for attempt in (lambda: load_weights(path), lambda: open_model(path, model="vim_nano")):
        with pytest.raises(CheckpointError, match=name):
            attempt()
    assert not witness.exists()


def rewritten(path: Path, **changes: object) -> Path:
    with safetensors.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["vision_ssm"])
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"vision_ssm": json.dumps({**record, **changes})})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "has format 99.*upgrade vision-ssm"),
        ({"model": "vim_nona"}, r"describes a model that cannot be built.*Did you mean 'vim_nano'\?"),
        ({"model_options": {"num_klasses": 3}}, "describes a model that cannot be built"),
        ({"preprocessing": {"input_size": [3, -1, 8]}}, "description is damaged.*at least 1 pixel"),
        ({"record": None}, "description is damaged"),
        ({"preprocessing": {"crop_pct": 1e-9}}, "description is damaged.*would enlarge"),
        ({"preprocessing": {"mean": [10**400, 0, 0]}}, "description is damaged"),
        ({"metrics": {"top1": [1]}}, "description is damaged.*metric top1"),
        ({"val_fraction": "all"}, "description is damaged.*val_fraction"),
        ({"val_fraction": 0}, "val_fraction must be above 0"),
        ({"record": {"class_names": [["a"], "b", "c"]}}, r"class_names, got \[\['a'\]"),
        ({"record": {"class_names": "cat"}}, "a classifier's record lists its class_names, got 'cat'"),
        (
            {"task": "classificaton"},
            r"of a task that is not installed: no task is called 'classificaton'.*'classification'\?",
        ),
    ],
)
def test_damaged_descriptions(weights: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"best\.safetensors.*{message}"):
        load_weights(rewritten(weights, **changes))


SOURCES = [
    {"pretrained": True},
    {"checkpoint_path": "TRACE"},
    {"cache_dir": "TRACE"},
    {"pretrained_cfg": {"url": "http://localhost:9/x.pth", "file": "TRACE"}, "pretrained": True},
    {"pretrained_cfg_overlay": {"file": "TRACE"}},
    {"features_only": True},
    {"device": "meta"},
]


@pytest.mark.parametrize("model", ["vim_nano", "resnet18", "vim_nano.untrained"])
@pytest.mark.parametrize("options", SOURCES)
def test_a_file_cannot_say_where_to_get_weights(
    tmp_path: Path, weights: Path, model: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("socket.getaddrinfo", fetched)
    monkeypatch.setattr("urllib.request.urlopen", fetched)
    monkeypatch.setattr("torch.load", fetched)
    with pytest.raises(CheckpointError, match=r"has no option '\w+' that a file may set"):
        load_weights(rewritten(weights, model=model, model_options=options))


@pytest.mark.parametrize(
    "model", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/etc", "timm/resnet18", "../vim_nano", "", "hf_hub:vim_nano"]
)
def test_a_file_names_a_registered_model(weights: Path, model: str) -> None:
    with pytest.raises(CheckpointError, match="is no registered model's name; a file may give no address and no path"):
        load_weights(rewritten(weights, model=model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 10**6}, r"depth must be at most \d+ in this file, got 1000000"),
        ({"embed_dim": 10**9}, "embed_dim must be at most 1048576"),
        ({"embed_dim": 10**100}, "embed_dim must be at most 1048576"),
        ({"img_size": [8, 10**12]}, "img_size must be at most"),
        ({"depth": True}, "depth must be of type int, got True"),
        ({"depth": "2"}, "depth must be of type int, got '2'"),
        ({"drop_rate": float("nan")}, "drop_rate must be a finite number"),
        ({"class_token": "x" * 5000}, "class_token must be a number, a short text"),
        ({"class_token": {"a": 1}}, "class_token must be a number, a short text"),
        ({"class_token": "nowhere"}, "class_token must be one of"),
        ({"img_size": [[[[[8]]]]]}, "list that is too long or too deep"),
        ({"embed_dim": 1 << 20}, r"does not fit its own model.*instead of \["),
    ],
)
def test_options_are_checked_before_memory_is_taken(weights: Path, options: dict[str, object], message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=rf"best\.safetensors.*{message}"):
        load_weights(rewritten(weights, model_options={"depth": 1, "embed_dim": 16, "img_size": 8, **options}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_every_option_of_our_models_may_come_from_a_file() -> None:
    rows = [row for row in all_variants().values() if row.feature_cls is None]
    refused = []
    for row in rows:
        try:
            check_described(row.name, json.loads(json.dumps(dict(row.options))), 1000)
        except CheckpointError as error:
            refused.append((row.name, str(error)))
    assert rows
    assert refused == []


def test_a_model_of_timm_with_its_own_options(tmp_path: Path) -> None:
    model = create_model("resnet18", num_classes=2, stem_width=16, drop_rate=0.1)
    info = WeightsInfo(
        "resnet18", {"stem_width": 16, "drop_rate": 0.1}, "classification", {"class_names": ["a", "b"]}, Preprocessing()
    )
    save_weights(tmp_path / "a.safetensors", model, info=info)
    loaded = load_weights(tmp_path / "a.safetensors").model
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize(
    "text",
    [
        '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"format": "2"}',
        '{"format": true}',
        "[1]",
        '{"format": ' + "9" * 5000 + "}",
    ],
)
def test_descriptions_that_are_none(weights: Path, loaded: Loaded, text: str) -> None:
    safetensors.torch.save_file(loaded.model.state_dict(), weights, metadata={"vision_ssm": text})
    with pytest.raises(CheckpointError, match=r"best\.safetensors.*description is damaged"):
        read_info(weights)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind(weights: Path, loaded: Loaded, dtype: torch.dtype) -> None:
    tensors = loaded.model.state_dict()
    tensors["head.weight"] = tensors["head.weight"].to(dtype)
    safetensors.torch.save_file(tensors, weights, metadata={"vision_ssm": loaded.info.to_json()})
    with pytest.raises(CheckpointError, match=r"head\.weight holds \w+ instead of floating-point numbers"):
        load_weights(weights)
    halves = {name: tensor.half() for name, tensor in loaded.model.state_dict().items()}
    safetensors.torch.save_file(halves, weights, metadata={"vision_ssm": loaded.info.to_json()})
    assert load_weights(weights).model.head.weight.dtype == torch.float32


def test_tensors_that_do_not_fit_are_listed(weights: Path, loaded: Loaded) -> None:
    with pytest.raises(CheckpointError, match=r"head\.weight is \[3, 16\] instead of \[4, 16\]"):
        load_weights(rewritten(weights, record={"class_names": list("abcd")}))
    tensors = safetensors.torch.load_file(weights)
    tensors["extra"] = tensors.pop("head.bias")
    metadata = {"vision_ssm": loaded.info.to_json()}
    safetensors.torch.save_file(tensors, weights, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"missing head\.bias, unexpected extra"):
        load_weights(weights)


def test_wrong_checkpoint_for_a_named_model(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors' into 'vim_nano'.*head"):
        open_model(
            weights, model="vim_nano", model_options={"num_classes": 7, "depth": 1, "embed_dim": 16, "img_size": 8}
        )


@pytest.mark.parametrize("names", [["a"], ["a", "b"], list("abcde")])
def test_outputs_that_are_not_one_per_class_name(loaded: Loaded, names: list[str]) -> None:
    info = dataclasses.replace(loaded.info, record={"class_names": names})
    with pytest.raises(ShapeError, match=rf"must give \[1, {len(names)}\], .* got \[1, 3\]"):
        predict(Loaded(loaded.model, info), Image.new("RGB", (8, 8)))


def test_a_model_that_pools_nothing_is_no_classifier(weights: Path) -> None:
    options = {"depth": 1, "embed_dim": 16, "img_size": 8, "global_pool": ""}
    with pytest.raises(ShapeError, match=r"must give \[1, 3\], a number per image and class name"):
        predict(rewritten(weights, model_options=options), Image.new("RGB", (8, 8)))
