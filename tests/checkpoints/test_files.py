import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vision_ssm.checkpoints import read_checkpoint
from vision_ssm.errors import CheckpointError


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
