"""Files are what they hold, not what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vision_ssm.checkpoints import read_checkpoint
from vision_ssm.checkpoints.content import kind_of
from vision_ssm.errors import CheckpointError
from vision_ssm.weights.files import load_weights

WEIGHTS = {"a": torch.arange(3.0)}
OTHERS = {
    "Git LFS pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "web page, not weights.*download the file again": b"\xef\xbb\xbf\n <!DOCTYPE html><html><title>Sign in</title>" * 9,
    "gzip archive; unpack": b"\x1f\x8b\x08" + bytes(60),
    "HDF5 file, which is not read": b"\x89HDF\r\n\x1a\n" + bytes(60),
}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.bin", "x"])
@pytest.mark.parametrize("message", OTHERS)
def test_what_came_in_place_of_weights_is_named(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(OTHERS[message])
    for read in (read_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match=rf"{name.replace('.', '[.]')}'? .*{message}"):
            read(path)


@pytest.mark.parametrize("name", ["x.SAFETENSORS", "x.bin", "x.pth", "x"])
def test_safetensors_under_any_name(tmp_path: Path, name: str) -> None:
    save_file({f"_orig_mod.{key}": tensor for key, tensor in WEIGHTS.items()}, tmp_path / name)
    assert torch.equal(read_checkpoint(tmp_path / name).weights["a"], WEIGHTS["a"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["x.PTH", "x.safetensors", "x"])
def test_torch_files_under_any_name(tmp_path: Path, name: str, legacy: bool) -> None:
    torch.save(WEIGHTS, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(read_checkpoint(tmp_path / name).weights["a"], WEIGHTS["a"])


def test_every_length_of_a_header_is_safetensors(tmp_path: Path) -> None:
    """The first byte of one in 32 is that of a pickle, and of another the P of a zip archive."""
    starts = set()
    for padding in range(0, 256, 8):
        save_file(WEIGHTS, tmp_path / "x.bin", metadata={"padding": "x" * padding})
        starts.add((tmp_path / "x.bin").read_bytes()[0])
        assert kind_of(tmp_path / "x.bin") == "safetensors"
    assert {0x80, ord("P")} <= starts


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x"])
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for read in (read_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match="a named pipe, not a file"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "none/x"])
def test_names_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    for read in (read_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match=r"cannot be read|does not exist|cannot open weights file"):
            read(tmp_path / name)
