"""Vim equals the published class: logits, features, gradients and counts, through load_published, on every backend."""

from __future__ import annotations

import pytest
import torch

from tests.recorded import VARIANTS, image, load, relative
from vision_ssm.checkpoints import load_published
from vision_ssm.checkpoints.vim import to_published
from vision_ssm.models import create_model

LONG = ("tiny_patch16_384", "tiny_patch16_stride8_224")
WITH_GRADIENTS = [name for name in VARIANTS if name not in LONG]


def cases(variants, always):
    """Every variant on every backend; of the backends not in `always` only the default variant runs in a quick test."""
    found = []
    for backend in ("cpu", "chunked", "reference"):
        for variant in variants:
            slow = backend not in always and variant != "tiny_patch16_224"
            marks = [pytest.mark.slow] if slow else []
            found.append(pytest.param(variant, backend, id=f"{variant}-{backend}", marks=marks))
    return found


def published(recording):
    model = create_model(recording.model_name, **recording.options())
    load_published(model, {"model": recording.published_weights(), "epoch": 3})
    return model.eval()


@pytest.mark.parametrize(("variant", "backend"), cases(VARIANTS, ("cpu", "chunked")), indirect=["backend"])
@torch.no_grad()
def test_logits_and_features(variant, backend):
    recording = load(variant)
    model = published(recording)
    side = recording.config["img_size"]
    tokens = model.forward_features(image(side, side))
    assert relative(model.forward_head(tokens, pre_logits=True), recording.arrays["features"]) < 1e-4
    assert relative(model.forward_head(tokens), recording.arrays["logits_f64"]) < 1e-4


@pytest.mark.parametrize(("variant", "backend"), cases(WITH_GRADIENTS, ("cpu",)), indirect=["backend"])
def test_gradients(variant, backend):
    recording = load(variant)
    model = published(recording)
    side = recording.config["img_size"]
    model(image(side, side)).square().mean().backward()
    parameters = dict(model.named_parameters())
    gradients = to_published({name: parameter.grad for name, parameter in parameters.items()})
    values = to_published({name: parameter.detach() for name, parameter in parameters.items()})
    names = recording.arrays["grad_names"].tolist()
    assert sorted(gradients) == sorted(names)
    records = zip(names, recording.arrays["grad_norms_f64"], recording.arrays["grad_param_dots_f64"], strict=True)
    for name, norm, dot in records:
        gradient, value = gradients[name].double(), values[name].double()
        assert abs(gradient.norm().item() - norm) <= 1e-3 * norm + 1e-12, name
        # The dot product sees signs and layouts that the norm does not; measured against its largest possible value.
        assert abs((gradient * value).sum().item() - dot) <= 1e-4 * norm * value.norm().item() + 1e-12, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count_and_names(variant):
    recording = load(variant)
    with torch.device("meta"):
        model = create_model(recording.model_name, **recording.options())
    assert sum(parameter.numel() for parameter in model.parameters()) == int(recording.arrays["n_params"])
    ours = {name: list(tensor.shape) for name, tensor in to_published(model.state_dict()).items()}
    assert ours == recording.published_shapes()


def test_float64_agrees_to_float64_precision():
    recording = load("tiny_patch16_224")
    model = published(recording).double()
    with torch.no_grad():
        # float32 would be some 1e-6 away. The weights are made with NumPy's logarithms of float32, whose last bit
        # depends on the processor's instructions; without AVX-512 that moves the logits by 1.4e-8.
        assert relative(model(image(224, 224).double()), recording.arrays["logits_f64"]) < 1e-7
