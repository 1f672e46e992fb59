"""VMamba and EfficientVMamba equal their published classes on every backend, through load_published."""

from __future__ import annotations

import pytest
import torch

from tests.recorded import FAMILIES, load, relative
from vision_ssm.checkpoints import efficient_vmamba, load_published, vmamba
from vision_ssm.models import create_model

LAYOUTS = {"vmamba": vmamba, "efficientvmamba": efficient_vmamba}
EVERY = [(family, path.stem) for family in LAYOUTS for path in sorted((FAMILIES / family).glob("*.npz"))]
CLASSIFIERS = [pair for pair in EVERY if not pair[1].endswith("_backbone")]
BACKBONES = [pair for pair in EVERY if pair[1].endswith("_backbone")]

# On the kernel in a quick test; one of each family runs on 'chunked' too, everything else is slow.
QUICK = {
    *("tiny_s1l8", "v0_tiny", "tiny_s1l8_unidi", "tiny_s1l8_bidi", "tiny_s1l8_cascade"),
    *("tiny", "tiny_232x248"),
}
QUICK_GRADIENTS = {"tiny_s1l8", "tiny_s1l8_cascade", "tiny"}


def cases(pairs, on_kernel, on_chunked=()):
    """Every recording on every backend."""
    found = []
    for backend, quick in (("cpu", on_kernel), ("chunked", on_chunked), ("reference", ())):
        for family, name in pairs:
            marks = [] if name in quick else [pytest.mark.slow]
            found.append(pytest.param(family, name, backend, id=f"{family}-{name}-{backend}", marks=marks))
    return pytest.mark.parametrize(("family", "name", "backend"), found, indirect=["backend"])


def built(recording):
    """The model of a recording, without the parts that the published backbone for dense tasks lacks."""
    model = create_model(recording.model_name, **recording.options())
    if recording.name.endswith("_backbone"):
        model.prune_intermediate_layers(4, prune_norm=True)
    return model


def published(family, recording):
    """The model with the recorded weights, read from what the family's released files look like."""
    weights = recording.published_weights()
    wrapped = {"model": weights, "epoch": 3}
    if family == "efficientvmamba":  # the averaged weights of a distributed run
        wrapped = {"state_dict": {f"module.module.{name}": x for name, x in weights.items()}, "epoch": 290}
    model = built(recording)
    load_published(model, wrapped)
    return model.eval()


def corners(x):
    """Pixels (0, 0), (H // 2, W // 3) and (H - 1, W - 1) of a channel-last map, [B, 3, C]."""
    height, width = x.shape[1:3]
    return torch.stack([x[:, 0, 0], x[:, height // 2, width // 3], x[:, -1, -1]], dim=1)


def check_gradients(family, model, recording):
    gradients = LAYOUTS[family].to_published({name: p.grad for name, p in model.named_parameters()})
    names = recording.arrays["grad_names"].tolist()
    assert sorted(gradients) == sorted(names)
    for name, norm in zip(names, recording.arrays["grad_norms_f64"], strict=True):
        assert abs(gradients[name].double().norm().item() - norm) <= 1e-3 * norm + 1e-12, name


@cases(CLASSIFIERS, QUICK, ("tiny_s1l8", "tiny"))
@torch.no_grad()
def test_logits_and_stages(family, name, backend):
    recording = load(name, family)
    model = published(family, recording)
    seen = {}
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda _, __, out, i=i: seen.update({f"stage{i}": out}))
        if i:
            stage.downsample.register_forward_hook(lambda _, __, out, i=i: seen.update({f"down{i - 1}": out}))
    model.patch_embed.register_forward_hook(lambda _, __, out: seen.update(stem=out))
    features = model.forward_features(recording.images())
    assert relative(model.forward_head(features, pre_logits=True), recording.arrays["features"]) < 1e-4
    assert relative(model.forward_head(features), recording.arrays["logits_f64"]) < 1e-4
    seen["down3"] = seen["stage3"]  # the last stage has no downsampling; published as an identity
    for part, (mean, std, norm) in zip(recording.arrays["stat_names"], recording.arrays["stats"], strict=True):
        x = seen[str(part)].double()
        assert abs(x.mean().item() - mean) < 1e-4 * std, part
        assert x.std(correction=0).item() == pytest.approx(std, rel=1e-4), part
        assert x.norm().item() == pytest.approx(norm, rel=1e-4), part
        assert relative(corners(x)[..., :16], recording.arrays[f"probe_{part}"]) < 1e-4, part


@cases(CLASSIFIERS, QUICK_GRADIENTS)
def test_gradients(family, name, backend):
    recording = load(name, family)
    model = published(family, recording)
    model(recording.images()).square().mean().backward()
    check_gradients(family, model, recording)


@cases(BACKBONES, {name for _, name in BACKBONES})
def test_backbone_for_dense_tasks(family, name, backend):
    recording = load(name, family)
    model = published(family, recording)
    maps = model.forward_intermediates(recording.images(), intermediates_only=True)
    for i, found in enumerate(maps):
        assert list(found.shape) == recording.arrays["out_shapes"][i].tolist()
        assert relative(corners(found.permute(0, 2, 3, 1)), recording.arrays[f"out{i}_probe"]) < 1e-4
        assert relative(found.mean(dim=(2, 3)), recording.arrays[f"out{i}_chanmean"]) < 1e-4
    loss = sum(found.square().mean() for found in maps)
    assert loss.item() == pytest.approx(float(recording.arrays["loss_f64"]), rel=1e-5)
    loss.backward()
    check_gradients(family, model, recording)


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_parameter_count_and_names(family, name):
    recording = load(name, family)
    with torch.device("meta"):
        model = built(recording)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(recording.arrays["n_params"])
    ours = {key: list(x.shape) for key, x in LAYOUTS[family].to_published(model.state_dict()).items()}
    assert ours == recording.published_shapes()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("vmamba", "tiny_s1l8"), ("efficientvmamba", "tiny_232x248")])
def test_float64_agrees_to_float64_precision(family, name):
    recording = load(name, family)
    model = published(family, recording).double()
    with torch.no_grad():
        assert relative(model(recording.images().double()), recording.arrays["logits_f64"]) < 1e-9
