"""Files are checked by their runtime, say what they are, and are left only where they say what the model says."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.exporting import FORMATS, checking, export, onnx_files
from vision_ssm.exporting.lowering import Written
from vision_ssm.layers.gla_mixer import GLAMixer
from vision_ssm.models.registry import create_model
from vision_ssm.weights.exported import RECORD, read_exported
from vision_ssm.weights.files import DESCRIPTION, Loaded, WeightsInfo


def test_the_check_sees_all_batches_and_agrees(exported):
    check = exported.check
    assert check.error < 1e-5
    assert check.agreement == 1
    assert [(case.batch, case.height, case.width) for case in check.cases] == [*[(1, 8, 8)] * 5, (3, 8, 8), (2, 8, 8)]
    assert min(check.runtime_seconds, check.torch_seconds) > 0


def test_the_file_says_what_it_is(exported, loaded):
    file = read_exported(exported.path)
    described = json.loads(file.runtime.metadata[DESCRIPTION])
    assert described["record"] == {"class_names": ["blue", "green", "red"]}
    assert file.info.preprocessing == loaded.info.preprocessing
    record = json.loads(file.runtime.metadata[RECORD])
    assert (record["format"], record["outputs"], record["dynamic"]) == ("onnx", ["logits", "embedding"], ["batch"])
    assert set(record["versions"]) == {"vision-ssm", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert record["check"] == exported.check.to_dict() | {"cases": record["check"]["cases"]}
    assert file.record.check["tolerance"] == 1e-4


def test_scans_are_one_loop_each_with_the_exponential_inside(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported.path))
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    assert len(scans) == 1
    body = next(attribute.g for attribute in scans[0].attribute if attribute.name == "body")
    assert [node.op_type for node in body.node].count("Exp") == 1
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model)


def spoilt_weight(model):
    """The last matrix, one number of which is another."""
    from onnx import numpy_helper

    weight = next(
        tensor for tensor in reversed(model.graph.initializer) if len(tensor.dims) == 2 and tensor.data_type == 1
    )
    numbers = numpy_helper.to_array(weight).copy()
    numbers[0, 0] += 0.1
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))


def spoilt_walk(model):
    """The way back through the tokens, two of which are visited in the wrong order."""
    from onnx import numpy_helper

    back = np.arange(5)[::-1]  # 4 patches and the class token
    walk = next(
        tensor for tensor in model.graph.initializer if np.array_equal(numpy_helper.to_array(tensor).ravel(), back)
    )
    order = numpy_helper.to_array(walk).copy()
    order[[0, 1]] = order[[1, 0]]
    walk.CopyFrom(numpy_helper.from_array(order, walk.name))


@pytest.fixture
def converted_once(exported, monkeypatch):
    """Exports take the file that was made for the session."""

    def write(path, *_, **__):
        path.write_bytes(exported.path.read_bytes())
        return Written(onnx_files.PACKAGES)

    monkeypatch.setattr(onnx_files, "write", write)


@pytest.mark.parametrize("spoil", [spoilt_weight, spoilt_walk])
def test_a_file_that_differs_is_refused_and_removed(exported, loaded, spoil, monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported.path))
    spoil(model)

    def write(path, *_, **__):
        onnx.save(model, str(path))
        return Written(onnx_files.PACKAGES)

    monkeypatch.setattr(onnx_files, "write", write)
    with pytest.raises(CheckpointError, match=r"differs from the model: an error of .* and 0\.0001 is allowed"):
        export(loaded, tmp_path / "spoilt.onnx", dynamic=["batch"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("converted_once")
def test_a_file_that_changes_after_its_check_is_refused(loaded, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    describe = onnx_files.describe

    def describe_and_spoil(path, entries):
        describe(path, entries)
        if DESCRIPTION not in entries:  # the second time, with what came of the check
            model = onnx.load(str(path))
            spoilt_weight(model)
            onnx.save(model, str(path))

    monkeypatch.setattr(onnx_files, "describe", describe_and_spoil)
    with pytest.raises(CheckpointError, match=r"that was checked changed as its record was written into it: an error"):
        export(loaded, tmp_path / "m.onnx", dynamic=["batch"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_is_beyond_every_tolerance():
    nan = checking.Check((checking.Case(1, 8, 8, float("nan")), checking.Case(1, 8, 8, 0.0)), 1.0, 1.0, 1.0, 1, 1e-4)
    assert np.isnan(nan.error)
    with pytest.raises(CheckpointError, match="an error of nan"):
        checking.require(nan)


class Other(torch.nn.Linear):
    pass


def changed(loaded, change):
    model = copy.deepcopy(loaded.model)
    change(model)
    return Loaded(model, loaded.info)


def replace_forward(model):
    model.norm.forward = lambda x: x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.train(), "is in training mode; call model.eval"),
        (lambda model: model.norm.register_forward_hook(lambda *_: None), r"norm \(RMSNorm\) has hooks"),
        (lambda model: setattr(model, "head", Other(16, 3).eval()), r"head \(Other\) is of a class of tests; only"),
        (replace_forward, r"forward of norm \(RMSNorm\) was replaced"),
        (lambda model: model.bfloat16(), "is torch.bfloat16; models are exported in float32"),
    ],
    ids=["training", "hooks", "class", "forward", "dtype"],
)
def test_models_that_a_file_cannot_hold_are_refused(loaded, change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export(changed(loaded, change), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "format must be one of onnx, openvino, torch.*Did you mean 'onnx'"),
        ({"dynamic": ["length"]}, "dynamic must be one of batch, size, got 'length'"),
        ({"target": "tensorrt"}, "target of onnx must be one of onnxruntime, portable, got 'tensorrt'"),
        ({"output": "m.pth"}, "files in onnx format end in .onnx, got 'm.pth'"),
        ({"precision": "int4"}, "precision must be one of float32, float16, int8, got 'int4'"),
        ({"precision": "int8"}, "int8 needs a folder of images with known answers to calibrate on"),
        ({"calibrate": "images"}, "other precision takes one, got precision 'float32' and calibrate 'images'"),
        ({"format": "torch", "output": "m.pt2", "precision": "float16"}, "is written in float32 only"),
        ({"dynamic": ["size"], "img_size": 9}, "sides are multiples of 4, got 9x9; give --img-size"),
    ],
)
def test_options_that_do_not_fit_are_refused(loaded, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        export(loaded, **{"output": "m.onnx", **options})


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(loaded, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"the extra 'export' \(pip install .*{package} is missing"):
        export(loaded, tmp_path / "m.onnx")


def test_an_exported_file_is_not_exported_again(exported):
    with pytest.raises(ConfigError, match="is an exported model already; give the weights"):
        export(exported.path)


def test_a_task_without_export_says_so(loaded, tmp_path):
    record = {"class_names": ["nut"], "latents": None, "schedule": "linear"}
    info = WeightsInfo("dig_nano", {}, "generation", record, Preprocessing(input_size=(3, 8, 8)))
    with pytest.raises(ConfigError, match="models of the task generation cannot be exported"):
        export(Loaded(loaded.model, info), tmp_path / "m.onnx")


SMALL = {
    "vim_nano": {"depth": 1, "embed_dim": 32},
    "vmamba_nano": {"depths": (1, 1, 1, 1), "embed_dim": 16},
    "efficientvmamba_nano": {"depths": (1, 1, 1, 1), "embed_dim": 16},
    "vig_nano": {"depth": 1, "embed_dim": 64},
    "vig_h_tiny": {"depths": (1, 1, 1, 1), "embed_dim": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "target", "dynamic"),
    [
        ("onnx", "onnxruntime", ()),
        ("onnx", "portable", ()),
        ("onnx", "onnxruntime", ("batch", "size")),
        ("onnx", "portable", ("batch", "size")),
        ("openvino", "portable", ()),
        ("openvino", "portable", ("batch", "size")),
        ("torch", "portable", ()),
        ("torch", "portable", ("batch",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "fixed",
)
@pytest.mark.parametrize("name", SMALL)
def test_every_family_says_the_same(name, format, target, dynamic, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    options = SMALL[name]
    model = create_model(name, num_classes=3, **options).eval()
    side = 64 if dynamic else 32
    info = WeightsInfo(
        name, options, "classification", {"class_names": list("abc")}, Preprocessing(input_size=(3, side, side))
    )
    path = tmp_path / f"m{FORMATS[format]}"
    found = export(Loaded(model, info), path, format=format, target=target, dynamic=dynamic)
    assert found.check.error < 1e-4
    assert ({(case.height, case.width) for case in found.check.cases} != {(side, side)}) == ("size" in dynamic)
    assert {case.batch for case in found.check.cases} == ({1, 2, 3} if "batch" in dynamic else {1})
    if format == "onnx":
        assert_gated_linear_attention_is_one_node_a_block(path, model, target)


def assert_gated_linear_attention_is_one_node_a_block(path, model, target):
    """Of both directions, which are images side by side."""
    onnx = pytest.importorskip("onnx")
    nodes = Counter((node.domain, node.op_type) for node in onnx.load(str(path)).graph.node)
    blocks = sum(isinstance(module, GLAMixer) for module in model.modules())
    if blocks:
        assert nodes["com.microsoft", "LinearAttention"] == (blocks if target == "onnxruntime" else 0)
        assert nodes["", "Scan"] == (0 if target == "onnxruntime" else blocks)
    if target == "portable" or not blocks:
        assert {domain for domain, _ in nodes} == {""}
