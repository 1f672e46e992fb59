"""Models that AOTInductor compiles: checked, described and used as other exported files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

import vision_ssm
from tests.exporting.test_formats import same
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.exporting import export
from vision_ssm.weights.exported import read_exported

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="AOTInductor needs a C++ compiler"
)


@needs_compiler
@pytest.mark.slow
def test_a_package_with_our_operators(loaded, colour_folder, tmp_path, monkeypatch):
    found = export(loaded, tmp_path / "colours.pt2", format="aoti", dynamic=["batch"])
    assert found.check.error < 1e-5
    assert {case.batch for case in found.check.cases} == {1, 2, 3}
    assert (found.record.format, found.record.target) == ("aoti", "vision-ssm")
    file = read_exported(found.path)
    assert file.info.class_names == ("blue", "green", "red")
    assert file.record.check["error"] == found.check.error
    with zipfile.ZipFile(found.path) as archive:
        assert len(archive.namelist()) == len(set(archive.namelist()))
    images = colour_folder(count=1)
    same(vision_ssm.predict(loaded, images), vision_ssm.predict(found.path, images))
    code = f"import sys, torch; torch._inductor.aoti_load_package({str(found.path)!r}); sys.exit(3)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "vision_ssm::" in told.stderr  # its operators are not known there

    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # others are not compared
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        with pytest.raises(CheckpointError, match=r"compiled for processors with AVX\d+, this one has DEFAULT; export"):
            read_exported(found.path)
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(found.path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"torch cannot open .*broken.pt2"):
        read_exported(broken)


@needs_compiler
@pytest.mark.slow
def test_a_package_that_needs_torch_alone(loaded, colour_folder, tmp_path):
    found = export(loaded, tmp_path / "colours.pt2", format="aoti", target="portable")
    assert found.check.error < 1e-5
    images = colour_folder(count=1)
    same(vision_ssm.predict(loaded, images), vision_ssm.predict(found.path, images))
    code = f"""
import sys, torch
logits, embedding = torch._inductor.aoti_load_package({str(found.path)!r})(torch.zeros(1, 3, 8, 8))
assert logits.shape == (1, 3) and embedding.shape == (1, 16)
sys.exit(any(name.partition(".")[0] in ("vision_ssm", "timm") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_compiler_it_says_so(loaded, tmp_path):
    told = pytest.raises(ConfigError, match="AOTInductor needs a C\\+\\+ compiler")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), told:
        export(loaded, tmp_path / "colours.pt2", format="aoti")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dynamic": ["size"]}, "has one size"),
        ({"precision": "float16"}, "in float32 only"),
        ({"target": "onnxruntime"}, "target of aoti must be one of vision-ssm, portable, got 'onnxruntime'"),
        (
            {"format": "openvino", "target": "vision-ssm"},
            "target of openvino must be one of portable, got 'vision-ssm'",
        ),
    ],
)
def test_what_it_cannot_be_asked_for(loaded, tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        export(loaded, tmp_path / "colours.pt2", **{"format": "aoti", **options})
