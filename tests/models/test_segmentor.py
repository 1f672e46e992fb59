"""Segmentors: the published ones against what was recorded from them, and what any of them promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.recorded import fill, image, relative
from vision_ssm.checkpoints import load_published
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.families import family_of
from vision_ssm.models.registry import create_model, list_models, list_whole_models
from vision_ssm.models.segmentors import SEGMENTORS, build_segmentor
from vision_ssm.tasks.segmentation.losses import pixel_cross_entropy

NAME = "vmamba_tiny_s1l8_upernet_ade20k"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(Path(__file__).parent.parent / "golden" / "dense" / "vmamba_tiny_upernet_256x320.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def published(recorded: dict[str, Any]) -> dict[str, torch.Tensor]:
    keys = json.loads(str(recorded["keys"]))
    return {name: torch.from_numpy(np.asarray(fill(name, tuple(shape)))) for name, shape, _ in keys}


@pytest.fixture
def model(published: dict[str, torch.Tensor]) -> nn.Module:
    built = create_model(NAME, drop_path_rate=0.0, drop_rate=0.0).eval()
    load_published(built, {"meta": {}, "state_dict": published})
    return built


def probe(x: torch.Tensor, recorded: dict[str, Any], name: str) -> tuple[torch.Tensor, Any]:
    places = torch.from_numpy(recorded[f"{name}_pos"])
    assert list(x.shape) == recorded[f"{name}_shape"].tolist()
    return x[0][:, places[:, 0], places[:, 1]].T, recorded.get(f"{name}_probe_f64", recorded[f"{name}_probe"])


def test_the_published_segmentor_gives_the_published_maps_and_logits(
    model: nn.Module, recorded: dict[str, Any]
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    decode = model.decode_head
    named = {"psp": decode.bottleneck, "fused": decode.fpn_bottleneck, "decode_logits": decode.conv_seg}
    named |= {f"ppm{i}": decode.psp_modules[i] for i in range(4)}
    named |= {f"fpn{i}": decode.fpn_convs[i] for i in range(3)}
    handles = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    with torch.no_grad():
        logits = model(image(256, 320, 1))
        maps = model.maps(image(256, 320, 1), (256, 320))
        seen["aux_logits"] = model.auxiliary_head(maps[2])
    for handle in handles:
        handle.remove()
    seen |= {"seg_logits": logits, **{f"feat{i}": x for i, x in enumerate(maps)}}
    for name, found in seen.items():
        assert relative(*probe(found, recorded, name)) < 1e-5, name
    assert int((logits.argmax(1)[0].numpy() != recorded["pred"]).sum()) <= 2


def test_training_gives_the_published_losses_and_gradients(model: nn.Module, recorded: dict[str, Any]) -> None:
    rows, columns = torch.arange(256)[None, :, None], torch.arange(320)[None, None]
    of_batch = torch.arange(2)[:, None, None]
    labels = (rows // 16 * 7 + columns // 20 * 3 + 11 * of_batch) % 150
    labels[(3 * rows + 5 * columns + of_batch) % 11 == 0] = 255
    counts = [int((labels == 255).sum()), int(labels[labels != 255].sum())]
    assert counts == recorded["label_check"].tolist()[:2]
    main, auxiliary = model.train()(image(256, 320, 2))
    decode, aux = pixel_cross_entropy(main, labels), 0.4 * pixel_cross_entropy(auxiliary, labels)
    losses = json.loads(str(recorded["losses"]))
    assert decode.item() == pytest.approx(losses["decode.loss_ce"], rel=1e-5)
    assert aux.item() == pytest.approx(losses["aux.loss_ce"], rel=1e-5)
    valid = pixel_cross_entropy(main, labels, average="valid")
    assert valid.item() == pytest.approx(decode.item() * labels.numel() / int((labels != 255).sum()), rel=1e-6)
    (decode + aux).backward()
    # In the published names: to_published maps gradients as it does weights.
    family = family_of(model.inner)
    assert family is not None
    from vision_ssm.checkpoints.vmamba import to_published

    own = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in own.values())
    inside = to_published({n.removeprefix("backbone.model."): g for n, g in own.items() if n.startswith("backbone.")})
    grads = {f"backbone.{name}": g for name, g in inside.items()}
    grads |= {name: g for name, g in own.items() if not name.startswith("backbone.")}
    names, norms = json.loads(str(recorded["grad_names"])), recorded["grad_norms_f64"].tolist()
    assert sorted(grads) == sorted(names)
    zero = {"backbone.outnorm0.bias", "backbone.outnorm1.bias"}  # a constant before a batch norm
    off = {
        name: abs(float(grads[name].norm()) / norm - 1)
        for name, norm in zip(names, norms, strict=True)
        if name not in zero
    }
    assert max(off.values()) < 5e-3, max(off.items(), key=lambda item: item[1])
    assert sorted(off.values())[len(off) // 2] < 5e-4
    state = model.state_dict()
    for name, norm in zip(json.loads(str(recorded["bn_names"])), recorded["bn_after_norms"].tolist(), strict=True):
        if not name.endswith("num_batches_tracked"):
            assert float(state[name].norm()) == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("name", sorted(SEGMENTORS))
def test_parameters_are_those_published(name: str) -> None:
    with torch.device("meta"):
        built = create_model(name)
    assert sum(p.numel() for p in built.parameters()) == SEGMENTORS[name].params
    assert name in list_whole_models()
    assert name not in list_models()


def test_the_classifiers_alone_change_with_the_classes() -> None:
    with torch.device("meta"):
        whole, own = create_model(NAME).state_dict(), create_model(NAME, num_classes=3, in_chans=5).state_dict()
    changed = {name for name in whole if whole[name].shape != own[name].shape}
    heads = {f"{head}.conv_seg.{part}" for head in ("decode_head", "auxiliary_head") for part in ("weight", "bias")}
    assert changed == {*heads, "backbone.model.patch_embed.conv1.weight"}


def test_weights_that_do_not_fit_are_told_by_their_names(published: dict[str, torch.Tensor]) -> None:
    built = create_model(NAME)
    wrong = {name: x for name, x in published.items() if name != "decode_head.conv_seg.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: decode_head\.conv_seg\.bias"):
        load_published(built, wrong)
    with pytest.raises(CheckpointError, match="VMamba"):
        load_published(built, {name.replace("layers.0", "layers.9"): x for name, x in published.items()})
    load_published(built, {name: x.clone() for name, x in built.state_dict().items()})


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vim_nano", {}),
        ("vmamba_nano", {"patch_size": 4}),
        ("efficientvmamba_nano", {"patch_size": 4}),
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "dynamic_img_pad": True, "depth": 4}),
    ],
)
def test_any_backbone_with_the_four_strides(backbone: str, options: dict[str, int]) -> None:
    built = build_segmentor(backbone, {"num_classes": 4, "channels": 16, "auxiliary_channels": 8}, **options).eval()
    with torch.no_grad():
        assert built(torch.randn(1, 3, 70, 90)).shape == (1, 4, 70, 90)
    main, auxiliary = built.train()(torch.randn(1, 3, 64, 64))
    (main.square().mean() + auxiliary.square().mean()).backward()
    missing = [name for name, p in built.named_parameters() if p.grad is None]
    assert not missing, "gradients reach every parameter"


def test_a_size_that_timm_asserts_is_told() -> None:
    heads = {"num_classes": 4, "channels": 8, "auxiliary_channels": 0}
    built = build_segmentor("vit_tiny_patch16_224", heads, dynamic_img_size=True, depth=4).eval()
    with pytest.raises(ShapeError, match=r"images of \(64, 70\): .*divisible.* dynamic_img_pad true"):
        built(torch.randn(1, 3, 64, 70))


@pytest.mark.parametrize("tap", ["stream", "branch"])
@pytest.mark.parametrize("last_norm", [False, True])
def test_the_last_map_of_a_column_is_what_was_asked_for(tap: str, last_norm: bool) -> None:
    options = {"patch_size": 32, "class_token": "none", "global_pool": "avg"}  # the map of stride 32 is the tap itself
    heads = {"num_classes": 2, "channels": 8, "auxiliary_channels": 0, "tap": tap, "last_norm": last_norm}
    built = build_segmentor("vim_nano", heads, img_size=64, **options).eval()
    inner: Any = built.inner
    plain = create_model("vim_nano", img_size=64, num_classes=0, **options).eval()
    plain.load_state_dict(inner.state_dict(), strict=False)
    norm = plain.norm
    torch.nn.init.uniform_(norm.weight)
    if last_norm:
        built.backbone.last_norm.load_state_dict(norm.state_dict())
    added = []
    handle = plain.blocks[-1].mixer.register_forward_hook(lambda _module, _inputs, output: added.append(output))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (stream,) = plain.forward_intermediates(images, [7], intermediates_only=True, output_fmt="NLC")
        handle.remove()
        wanted = added[0] if tap == "branch" else stream
        wanted = norm(wanted) if last_norm else wanted
        found = built.maps(images, (64, 96))[-1]
    assert relative(found.flatten(2).transpose(1, 2), wanted.numpy()) < 1e-5


def test_a_published_column_has_the_published_parameters() -> None:
    heads = {"num_classes": 150, "channels": 192, "auxiliary_channels": 256, "tap": "branch", "last_norm": True}
    with torch.device("meta"):
        built = build_segmentor("vim_tiny_patch16_224", heads, img_size=512, class_token="none", global_pool="avg")
    assert sum(x.numel() for x in built.parameters()) == 12_311_276


def test_taps_are_options_of_columns_alone() -> None:
    heads = {"num_classes": 2, "tap": "branch"}
    with pytest.raises(ConfigError, match="the maps of vmamba_nano are those of its stages: tap and last_norm"):
        build_segmentor("vmamba_nano", heads, patch_size=4)
    with pytest.raises(ConfigError, match="the first block has none"):
        build_segmentor("vim_nano", heads, depth=4)


def test_other_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="strides 4, 8, 16, 32, got"):
        build_segmentor("vmamba_nano", {"num_classes": 4})
