"""EfficientVMamba equals the published class: logits, stages, feature maps, gradients, counts, on every backend."""

from __future__ import annotations

import pytest
import torch

from tests.recorded import FAMILIES, load, relative
from vision_ssm.checkpoints import load_published
from vision_ssm.checkpoints.efficient_vmamba import to_published
from vision_ssm.models import create_model

EVERY = sorted(path.stem for path in (FAMILIES / "efficientvmamba").glob("*.npz"))
CLASSIFIERS = [name for name in EVERY if not name.endswith("_backbone")]


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
    # As released: the averaged weights of a distributed run.
    prefixed = {f"module.module.{name}": tensor for name, tensor in recording.published_weights().items()}
    load_published(model, {"state_dict": prefixed, "epoch": 290})
    return model.eval()


def corners(x):
    """Pixels (0, 0), (H // 2, W // 3) and (H - 1, W - 1) of a channel-last map, [B, 3, C]."""
    height, width = x.shape[1:3]
    return torch.stack([x[:, 0, 0], x[:, height // 2, width // 3], x[:, -1, -1]], dim=1)


def check_gradients(model, recording):
    gradients = to_published({name: parameter.grad for name, parameter in model.named_parameters()})
    names = recording.arrays["grad_names"].tolist()
    assert sorted(gradients) == sorted(names)
    for name, norm in zip(names, recording.arrays["grad_norms_f64"], strict=True):
        assert abs(gradients[name].double().norm().item() - norm) <= 1e-3 * norm + 1e-12, name


@pytest.mark.parametrize(
    ("name", "backend"),
    cases(CLASSIFIERS, [("tiny", "cpu"), ("tiny_232x248", "cpu"), ("tiny", "chunked")]),
    indirect=["backend"],
)
@torch.no_grad()
def test_logits_and_stages(name, backend):
    recording = load(name, "efficientvmamba")
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
    seen["down3"] = seen["stage3"]  # the last stage has no downsampling; published as an identity
    for part, (mean, std, norm) in zip(recording.arrays["stat_names"], recording.arrays["stats"], strict=True):
        x = seen[str(part)].double()
        assert abs(x.mean().item() - mean) < 1e-4 * std, part
        assert x.std(correction=0).item() == pytest.approx(std, rel=1e-4), part
        assert x.norm().item() == pytest.approx(norm, rel=1e-4), part
        assert relative(corners(x)[..., :16], recording.arrays[f"probe_{part}"]) < 1e-4, part


@pytest.mark.parametrize(("name", "backend"), cases(CLASSIFIERS, [("tiny", "cpu")]), indirect=["backend"])
def test_gradients(name, backend):
    recording = load(name, "efficientvmamba")
    model = published(recording)
    model(recording.images()).square().mean().backward()
    check_gradients(model, recording)


@pytest.mark.parametrize(
    ("name", "backend"), cases(["tiny_backbone"], [("tiny_backbone", "cpu")]), indirect=["backend"]
)
def test_backbone_for_dense_tasks(name, backend):
    recording = load(name, "efficientvmamba")
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
    recording = load(name, "efficientvmamba")
    with torch.device("meta"):
        model = built(recording)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(recording.arrays["n_params"])
    ours = {key: list(tensor.shape) for key, tensor in to_published(model.state_dict()).items()}
    assert ours == recording.published_shapes()


@pytest.mark.slow
def test_float64_agrees_to_float64_precision():
    recording = load("tiny_232x248", "efficientvmamba")
    model = published(recording).double()
    with torch.no_grad():
        assert relative(model(recording.images().double()), recording.arrays["logits_f64"]) < 1e-9
