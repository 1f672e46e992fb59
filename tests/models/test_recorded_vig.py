"""ViG and ViG-H equal their published classes, in training and in evaluation, through load_published."""

from __future__ import annotations

import json

import pytest
import torch

from tests.recorded import Recording, image, load, relative
from vision_ssm.checkpoints import load_published, vig, vig_h
from vision_ssm.models import create_model

LAYOUTS = {"vig": vig, "vig_h": vig_h}
EVERY = [("vig", "tiny"), ("vig", "small"), ("vig_h", "tiny")]
MODES = {"evaluation": "", "training": "train_"}


def cases(quick):
    """Every recording in both modes; what is not ``quick`` is slow."""
    found = []
    for family, name in EVERY:
        for mode in MODES:
            for backend in ("cpu", "chunked", "reference"):
                marks = [] if (family, name, mode, backend) in quick else [pytest.mark.slow]
                found.append(
                    pytest.param(family, name, mode, backend, id=f"{family}-{name}-{mode}-{backend}", marks=marks)
                )
    return pytest.mark.parametrize(("family", "name", "mode", "backend"), found, indirect=["backend"])


def published(family, name, mode):
    recording = load(name, family)
    model = create_model(f"{family}_{name}")
    load_published(model, {"model": recording.published_weights(), "epoch": 3})
    return model.train(mode == "training"), recording


def test_recorded_options_are_those_of_the_variants():
    for family, name in EVERY:
        config = json.loads(str(load(name, family).arrays["config"]))["model"]
        model = create_model(f"{family}_{name}")
        if family == "vig":
            config = config["VIG"]
            mixer = model.blocks[0].mixer
            assert (model.embed_dim, len(model.blocks)) == (config["EMBED_DIM"], config["DEPTH"])
            assert (mixer.heads, mixer.conv_act, mixer.out_act) == (
                config["NUM_HEADS"], config["USE_ACT_IN_CONV"], config["USE_OUT_ACT"]
            )  # fmt: skip
        else:
            config = config["HIERVIG"]
            assert [len(stage.blocks) for stage in model.stages] == config["DEPTHS"]
            assert [stage.blocks[0].mixer.heads for stage in model.stages] == config["NUM_HEADS"]


@cases({("vig", "tiny", mode, backend) for mode in MODES for backend in ("cpu", "chunked")} | {
    ("vig_h", "tiny", "evaluation", "cpu")
})  # fmt: skip
@torch.no_grad()
def test_logits_and_features(family, name, mode, backend):
    model, recording = published(family, name, mode)
    features = model.forward_features(image(224, 224))
    expected = {part: recording.arrays[f"{MODES[mode]}{part}"] for part in ("features", "logits_f64")}
    assert relative(model.forward_head(features, pre_logits=True), expected["features"]) < 1e-4
    assert relative(model.forward_head(features), expected["logits_f64"]) < 1e-4


@cases({("vig", "tiny", "evaluation", "cpu")})
def test_gradients(family, name, mode, backend):
    model, recording = published(family, name, mode)
    model(image(224, 224)).square().mean().backward()
    layout = LAYOUTS[family]
    gradients = layout.to_published({key: p.grad for key, p in model.named_parameters()})
    values = layout.to_published({key: p.detach() for key, p in model.named_parameters()})
    names = recording.arrays["grad_names"].tolist()
    assert sorted(gradients) == sorted(names)
    norms, dots = (recording.arrays[f"{MODES[mode]}grad_{of}"] for of in ("norms", "param_dots"))
    for key, norm, dot in zip(names, norms, dots, strict=True):
        gradient, value = gradients[key].double(), values[key].double()
        assert abs(gradient.norm().item() - norm) <= 1e-3 * norm + 1e-12, key
        # The dot product sees signs and layouts that the norm does not.
        assert abs((gradient * value).sum().item() - dot) <= 1e-4 * norm * value.norm().item() + 1e-12, key


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_parameter_count_and_names(family, name):
    recording: Recording = load(name, family)
    with torch.device("meta"):
        model = create_model(f"{family}_{name}")
    assert sum(parameter.numel() for parameter in model.parameters()) == int(recording.arrays["n_params"])
    ours = {key: list(x.shape) for key, x in LAYOUTS[family].to_published(model.state_dict()).items()}
    assert ours == recording.published_shapes()


@torch.no_grad()
def test_the_two_modes_are_told_apart_in_float64():
    """Evaluation halves once more before a norm: only its epsilon shows it."""
    model, recording = published("vig", "tiny", "evaluation")
    x = image(224, 224).double()
    found = model.double()(x)
    assert relative(found, recording.arrays["logits_f64"]) < 1e-9
    assert 1e-6 < relative(found, recording.arrays["train_logits_f64"]) < 1e-5
    assert relative(model.train()(x), recording.arrays["train_logits_f64"]) < 1e-9
