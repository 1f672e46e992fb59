"""VMamba equals the published class: logits, stages, feature maps, gradients and counts, through load_published."""

from __future__ import annotations

import pytest
import torch

from tests.recorded import FAMILIES, load, relative
from vision_ssm.checkpoints import load_published
from vision_ssm.checkpoints.vmamba import to_published
from vision_ssm.models import create_model

EVERY = sorted(path.stem for path in (FAMILIES / "vmamba").glob("*.npz"))
CLASSIFIERS = [name for name in EVERY if not name.endswith("_backbone")]
PATTERNS = ("tiny_s1l8_unidi", "tiny_s1l8_bidi", "tiny_s1l8_cascade")


def cases(names, quick):
    """Every recording on every backend; `quick` says which pairs run in a quick test."""
    pairs = [(name, backend) for backend in ("cpu", "chunked", "reference") for name in names]
    return [pytest.param(*pair, id="-".join(pair), marks=[] if pair in quick else [pytest.mark.slow]) for pair in pairs]


def built(recording):
    """The model of a recording, without the parts that the published backbone for dense tasks lacks."""
    model = create_model(recording.model_name, **recording.options())
    if recording.name.endswith("_backbone"):
        model.prune_intermediate_layers(4, prune_norm=True)
    return model


def published(recording):
    model = built(recording)
    load_published(model, {"model": recording.published_weights(), "epoch": 3})
    return model.eval()


def corners(x):
    """Pixels (0, 0), (H // 2, W // 3) and (H - 1, W - 1) of a channel-last map, [B, 3, C]."""
    height, width = x.shape[1:3]
    return torch.stack([x[:, 0, 0], x[:, height // 2, width // 3], x[:, -1, -1]], dim=1)


def check_gradients(model, recording):
    parameters = dict(model.named_parameters())
    gradients = to_published({name: parameter.grad for name, parameter in parameters.items()})
    names = recording.arrays["grad_names"].tolist()
    assert sorted(gradients) == sorted(names)
    for name, norm in zip(names, recording.arrays["grad_norms_f64"], strict=True):
        assert abs(gradients[name].double().norm().item() - norm) <= 1e-3 * norm + 1e-12, name


QUICK = [("tiny_s1l8", "cpu"), ("tiny_s1l8", "chunked"), ("v0_tiny", "cpu"), *((name, "cpu") for name in PATTERNS)]


@pytest.mark.parametrize(("name", "backend"), cases(CLASSIFIERS, QUICK), indirect=["backend"])
@torch.no_grad()
def test_logits_and_features(name, backend):
    recording = load(name, "vmamba")
    model = published(recording)
    seen = {}
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda _, __, out, i=i: seen.update({f"stage{i}": out}))
        if i:
            stage.downsample.register_forward_hook(lambda _, __, out, i=i: seen.update({f"down{i - 1}": out}))
    model.patch_embed.register_forward_hook(lambda _, __, out: seen.update(stem=out))
    features = model.forward_features(recording.images())
    assert relative(model.forward_head(features, pre_logits=True), recording.arrays["features"]) < 1e-4
    assert relative(model.forward_head(features), recording.arrays["logits_f64"]) < 1e-4
    for part, (mean, std, norm) in zip(recording.arrays["stat_names"], recording.arrays["stats"], strict=True):
        if part == "down3":  # the last stage has no downsampling; published as an identity
            continue
        x = seen[str(part)].double()
        assert abs(x.mean().item() - mean) < 1e-4 * std, part
        assert x.std(correction=0).item() == pytest.approx(std, rel=1e-4), part
        assert x.norm().item() == pytest.approx(norm, rel=1e-4), part
        assert relative(corners(x)[..., :16], recording.arrays[f"probe_{part}"]) < 1e-4, part


QUICK = [("tiny_s1l8", "cpu"), ("tiny_s1l8_cascade", "cpu")]


@pytest.mark.parametrize(("name", "backend"), cases(CLASSIFIERS, QUICK), indirect=["backend"])
def test_gradients(name, backend):
    recording = load(name, "vmamba")
    model = published(recording)
    model(recording.images()).square().mean().backward()
    check_gradients(model, recording)


@pytest.mark.parametrize(
    ("name", "backend"), cases(["tiny_s1l8_backbone"], [("tiny_s1l8_backbone", "cpu")]), indirect=["backend"]
)
def test_backbone_for_dense_tasks(name, backend):
    recording = load(name, "vmamba")
    model = published(recording)
    maps = model.forward_intermediates(recording.images(), intermediates_only=True)
    for i, found in enumerate(maps):
        assert list(found.shape) == recording.arrays["out_shapes"][i].tolist()
        assert relative(corners(found.permute(0, 2, 3, 1)), recording.arrays[f"out{i}_probe"]) < 1e-4
        assert relative(found.mean(dim=(2, 3)), recording.arrays[f"out{i}_chanmean"]) < 1e-4
    loss = sum(found.square().mean() for found in maps)
    assert loss.item() == pytest.approx(float(recording.arrays["loss_f64"]), rel=1e-5)
    loss.backward()
    check_gradients(model, recording)


@pytest.mark.parametrize("name", EVERY)
def test_parameter_count_and_names(name):
    recording = load(name, "vmamba")
    with torch.device("meta"):
        model = built(recording)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(recording.arrays["n_params"])
    ours = {key: list(tensor.shape) for key, tensor in to_published(model.state_dict()).items()}
    assert ours == recording.published_shapes()


@pytest.mark.slow
def test_float64_agrees_to_float64_precision():
    recording = load("tiny_s1l8", "vmamba")
    model = published(recording).double()
    with torch.no_grad():
        assert relative(model(recording.images().double()), recording.arrays["logits_f64"]) < 1e-9
