import argparse
import collections
import datetime
import decimal
import os
import pickle
import types
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vision_ssm.checkpoints import load_published, read_checkpoint
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model


class Hostile:
    """Unpickling this would leave a file behind."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def weights():
    return {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_state_with_a_namespace(tmp_path, weights, legacy):
    path = tmp_path / "state.pth"
    state = {"model": weights, "optimizer": {}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    found, metadata = read_checkpoint(path)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert metadata == {"epoch": 7, "args": {"lr": 0.1}}


def test_safetensors_with_metadata(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    save_file(weights, path, metadata={"who": "me"})
    found, metadata = read_checkpoint(path)
    assert torch.equal(found["b"], weights["b"])
    assert metadata == {"who": "me"}


@pytest.mark.parametrize("inside", ["pickle", "torch", "legacy"])
def test_a_hostile_pickle_is_not_run(tmp_path, weights, inside):
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    state = {"model": weights, "args": Hostile(trace)}
    if inside == "pickle":
        path.write_bytes(pickle.dumps(state["args"], protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=inside == "torch")
    with pytest.raises(CheckpointError, match=r"w\.pth") as caught:
        read_checkpoint(path)
    assert not trace.exists()
    if inside == "torch":
        assert "can run code, so nothing of it was loaded" in str(caught.value).replace("\n", " ")
        assert "mkdir" in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content", [b"x", b"not a checkpoint at all " * 50, b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 80]
)
def test_what_is_no_checkpoint(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_file_cut_short(tmp_path, weights, name, kept):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_checkpoint(path)


def test_nothing_empty_or_a_folder(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 1}])
def test_other_things_torch_can_save(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not a dictionary of weights"):
        read_checkpoint(tmp_path / "w.pth")


WRAPPERS = ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "_orig_mod._orig_mod."]


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_what_wrappers_put_before_names_is_taken_off(tmp_path, weights, prefix, averaged, state):
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    if averaged:
        counter = torch.tensor(5)
        wrapped = {"n_averaged": counter} | wrapped if state else wrapped | {"_orig_mod.n_averaged": counter}
    torch.save({"model": wrapped} if state else wrapped, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth").weights
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_the_names_that_torch_itself_gives(tmp_path):
    layer = torch.nn.Linear(2, 2)
    compiled = torch.compile(layer, backend="eager")
    inner = torch.nn.Sequential(torch.compile(layer, backend="eager"), layer)  # only a part is compiled
    average = torch.optim.swa_utils.AveragedModel(compiled)
    own = {"weight", "bias"}
    for model, names in ((compiled, own), (average, own), (inner, {f"{i}.{name}" for i in "01" for name in own})):
        torch.save(model.state_dict(), tmp_path / "w.pth")
        assert read_checkpoint(tmp_path / "w.pth").weights.keys() == names


def test_a_mixture_of_wrapped_and_plain_names(tmp_path, weights):
    torch.save({"module.a": weights["a"], "b": weights["b"]}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").weights.keys() == weights.keys()
    torch.save({"module.a": weights["a"], "a": weights["a"]}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds a twice"):
        read_checkpoint(tmp_path / "w.pth")


HARMLESS = {
    "numpy float": (np.float64(91.5), 91.5),
    "numpy half": (np.float16(0.5), 0.5),
    "numpy int": (np.int64(-3), -3),
    "numpy bool": (np.bool_(True), True),
    "numpy text": (np.str_("cat"), "cat"),
    "numpy date": (np.datetime64("2024-02-03"), datetime.date(2024, 2, 3)),
    "path": (Path("/a/b"), PurePosixPath("/a/b")),
    "date": (datetime.date(2024, 2, 3), datetime.date(2024, 2, 3)),
    "moment": (
        datetime.datetime(2024, 2, 3, 4, tzinfo=datetime.UTC),
        datetime.datetime(2024, 2, 3, 4, tzinfo=datetime.UTC),
    ),
    "duration": (datetime.timedelta(1, 2), datetime.timedelta(1, 2)),
    "range": (range(1, 3), "range(1, 3, 1)"),
    "slice": (slice(1, 3), slice(1, 3)),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    "counter": (collections.Counter("ab"), {"a": 1, "b": 1}),
    "namespace": (types.SimpleNamespace(lr=np.float32(0.5)), {"lr": 0.5}),
    "decimal": (decimal.Decimal("1.5"), "Decimal(1.5)"),
    "version": (torch.__version__, str(torch.__version__)),
    "set": ({1, 2}, {1, 2}),
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_values_of_a_training_state(tmp_path, weights, kind, legacy):
    value, expected = HARMLESS[kind]
    torch.save({"model": weights, "x": value}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found, metadata = read_checkpoint(tmp_path / "w.pth")
    assert torch.equal(found["a"], weights["a"])
    assert metadata["x"] == expected


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", ">i4", "u1", "?", "U3", "M8[s]"])
def test_arrays_of_a_training_state(tmp_path, weights, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    torch.save({"model": weights, "x": array, "empty": np.zeros((0, 3))}, tmp_path / "w.pth")
    metadata = read_checkpoint(tmp_path / "w.pth").metadata
    assert np.array_equal(metadata["x"], array)
    assert metadata["x"].dtype == array.dtype.newbyteorder("=")
    assert metadata["empty"].shape == (0, 3)


@pytest.mark.parametrize("value", [np.array([object()], dtype=object), np.zeros(2, dtype=[("a", "f4")])])
def test_arrays_of_objects_and_records_are_refused(tmp_path, weights, value):
    torch.save({"model": weights, "x": value.astype(object) if value.dtype == object else value}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_checkpoint(tmp_path / "w.pth")


class LyingArray:
    """Pickles as a numpy array that claims more numbers than it brings."""

    def __reduce__(self):
        rebuild, arguments, (version, _, dtype, order, content) = np.zeros(4).__reduce__()
        return rebuild, arguments, (version, (1 << 40,), dtype, order, content)


def test_an_array_that_claims_more_than_it_brings(tmp_path, weights):
    torch.save({"model": weights, "x": LyingArray()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="only a part of one"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {0: torch.zeros(2)}, "a name in it is 0, not text"),
        (lambda: {"a": torch.zeros(2, 2).to_sparse()}, "a is sparse"),
        (lambda: {"a": torch.zeros(2, 2).to_sparse_csr()}, "a is sparse"),
        (lambda: {"a": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}, "a is quantised"),
        (lambda: {"a": torch.zeros(2, device="meta")}, "a is without numbers"),
    ],
)
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's, about the formats of these tensors
def test_names_and_tensors_that_are_no_weights(tmp_path, make, message, state):
    torch.save({"model": make()} if state else make(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype):
    model = create_model("vim_nano", num_classes=2, depth=1, embed_dim=16)
    state = model.state_dict()
    load_published(model, {name: tensor.half() for name, tensor in state.items()})
    for name in ("head.weight", "pos_embed"):
        with pytest.raises(CheckpointError, match=rf"wrong kind: {name} holds .* instead of floating-point numbers"):
            load_published(model, {**state, name: state[name].to(dtype)})


def test_an_archive_that_would_fill_the_memory(tmp_path, weights):
    torch.save({"a": torch.zeros(30_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match=r"w\.pth is a compressed archive of .* would unpack to 120,"):
        read_checkpoint(tmp_path / "w.pth")


def test_no_message_tells_how_to_load_unsafely(tmp_path, weights):
    contents = [Hostile(tmp_path / "trace"), {"model": weights, "f": print}, {"model": weights, "x": LyingArray()}]
    for content in contents:
        for legacy in (False, True):
            torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
            with pytest.raises(CheckpointError) as caught:
                read_checkpoint(tmp_path / "w.pth")
            assert not any(word in str(caught.value) for word in ("weights_only", "safe_globals", "allowlist"))
