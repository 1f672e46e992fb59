"""The other formats: checked, described and used as the first one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import vision_ssm
from vision_ssm.cli.main import main
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.exporting import export, onnx_files
from vision_ssm.exporting.lowering import Written
from vision_ssm.weights.exported import read_exported
from vision_ssm.weights.files import Loaded


def same(ours, theirs):
    for mine, other in zip(ours.results, theirs.results, strict=True):
        assert mine.classes[0][0] == other.classes[0][0]
        np.testing.assert_allclose([p for _, p in mine.classes], [p for _, p in other.classes], atol=1e-5)


def test_a_program_of_torch_needs_nothing_of_this_library(loaded, colour_folder, tmp_path):
    found = export(loaded, tmp_path / "colours.pt2", format="torch")
    assert found.check.error < 1e-5
    assert set(found.record.versions) == {"vision-ssm", "torch"}
    images = colour_folder(count=1)
    same(vision_ssm.predict(loaded, images), vision_ssm.predict(found.path, images))
    code = f"""
import sys, torch
program = torch.export.load({str(found.path)!r}).module()
logits, embedding = program(torch.zeros(1, 3, 8, 8))
assert logits.shape == (1, 3) and embedding.shape == (1, 16)
sys.exit(any(name.partition(".")[0] in ("vision_ssm", "timm") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_program_is_refused(tmp_path):
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"no program")
    with pytest.raises(CheckpointError, match=r"torch cannot open .*broken.pt2"):
        vision_ssm.load_model(broken)


def test_openvino_reads_and_runs_a_pair_of_files(exported, loaded, colour_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")

    def write(path, *_, **__):  # a Vim has the same nodes for every target
        shutil.copy(exported.path, path)
        return Written(onnx_files.PACKAGES)

    monkeypatch.setattr(onnx_files, "write", write)
    found = export(loaded, tmp_path / "pair" / "colours.xml", format="openvino", dynamic=["batch"])
    found = export(loaded, found.path, format="openvino", dynamic=["batch"])  # over the one before
    assert sorted(file.name for file in found.path.parent.iterdir()) == ["colours.bin", "colours.xml"]
    assert found.check.error < 1e-5
    file = read_exported(found.path)
    assert file.info.class_names == ("blue", "green", "red")
    assert file.record.check["error"] == found.check.error
    assert set(file.record.versions) == {"vision-ssm", "torch", "onnx", "onnxscript", "onnxruntime", "openvino"}
    images = colour_folder()
    same(vision_ssm.predict(loaded, images, batch_size=5), vision_ssm.predict(found.path, images, batch_size=5))
    assert main(["predict", str(found.path.parent), str(images / "red" / "0.png"), "--json"]) == 0  # by their folder
    said = json.loads(capsys.readouterr().out)
    assert [image["classes"][0]["class"] for image in said["results"]] == ["red"]
    assert said["weights"] == str(found.path.parent)
    (found.path.with_suffix(".bin")).unlink()
    with pytest.raises(CheckpointError, match="openvino cannot open"):
        vision_ssm.load_model(found.path)


def test_what_lies_beside_the_file_is_not_written_over(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "write", lambda *_, **__: pytest.fail("it was converted"))
    pair, checkpoint = tmp_path / "best.xml", tmp_path / "best.bin"
    checkpoint.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"would write over .*best.bin', which is from no export to .*best.xml'"):
        export(loaded, pair, format="openvino")
    pair.write_text("<annotation/>")
    named = Loaded(loaded.model, dataclasses.replace(loaded.info, source=str(checkpoint)))
    for output, message in ((pair, "over its weights"), (None, "over its weights")):
        with pytest.raises(ConfigError, match=message):
            export(named, output, format="openvino")
    pair.write_text("<vision_ssm_export/>")  # an export of ours, whose place the weights took
    with pytest.raises(ConfigError, match=r"would write over its weights, '.*best.bin'; name another output"):
        export(named, pair, format="openvino")
    assert checkpoint.read_bytes() == b"weights"


def test_without_openvino_the_extra_is_named(loaded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"the extra 'export'.*openvino is missing"):
        export(loaded, tmp_path / "colours.xml", format="openvino")


def test_a_program_of_torch_has_one_size(loaded, tmp_path):
    with pytest.raises(ConfigError, match="a program of torch has one size: leave size out of dynamic"):
        export(loaded, tmp_path / "colours.pt2", format="torch", dynamic=["size"])
