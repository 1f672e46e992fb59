"""Embedding in strips is the embedding of the whole image, wherever it is cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.layers.patch_embed import PatchEmbed
from vision_ssm.layers.stem import make_stem
from vision_ssm.layers.strips import Patches, convolved_strips, gather_patches
from vision_ssm.models.registry import create_model

SIZES = [(8, 8), (9, 8), (8, 11), (16, 24), (23, 17), (40, 13), (31, 33)]


def cut(image: Tensor, *heights: int) -> Iterator[Tensor]:
    """Strips of these heights in turn, over and over."""
    top = 0
    while top < image.shape[2]:
        for height in heights:
            if top < image.shape[2]:
                yield image[:, :, top : top + height]
                top += height


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (8, 4), (8, 3), (7, 5), (8, 1)])
@pytest.mark.parametrize("heights", [(1,), (8,), (3, 11), (100,)])
def test_patches(size: tuple[int, int], patch: int, stride: int, heights: tuple[int, ...]) -> None:
    embed = PatchEmbed(32, patch, stride, 3, 6).double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    tokens, grid = embed(image)
    found = embed.embed_strips(cut(image, *heights), size)
    assert found.grid == grid
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 3), *SIZES])
@pytest.mark.parametrize(("version", "patch"), [("v1", 4), ("v1", 3), ("v2", 4), ("v2", 2)])
@pytest.mark.parametrize("heights", [(1,), (2, 5), (100,)])
def test_stems(size: tuple[int, int], version: str, patch: int, heights: tuple[int, ...]) -> None:
    stem = make_stem(version, 3, 8, patch).double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    whole = stem(image)
    found = stem.embed_strips(cut(image, *heights), size)
    assert found.grid == tuple(whole.shape[1:3])
    torch.testing.assert_close(found.tokens.unflatten(1, found.grid), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vim_nano", {"depth": 2, "embed_dim": 16}),
        ("vim_nano", {"depth": 2, "embed_dim": 16, "class_token": "double", "patch_size": 8, "stride": 4}),
        ("vim_nano", {"depth": 2, "embed_dim": 16, "class_token": "none"}),
        ("vmamba_nano", {"depths": (1, 1, 1, 1), "pos_embed": True}),
        ("efficientvmamba_nano", {}),
    ],
)
def test_models_take_patches_in_the_place_of_images(name: str, options: dict[str, object]) -> None:
    model = create_model(name, **options).eval()
    image = torch.randn(1, 3, 45, 38)
    with torch.inference_mode():
        patches = model.embed_strips(cut(image, 16), (45, 38))
        assert isinstance(patches, Patches)
        torch.testing.assert_close(model(patches), model(image), rtol=1e-4, atol=1e-5)
        features, maps = model.forward_intermediates(patches, indices=[1])
        expected, whole_maps = model.forward_intermediates(image, indices=[1])
        torch.testing.assert_close(model.forward_features(patches), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((features, *maps), (expected, *whole_maps), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_strips() -> None:
    embed = PatchEmbed(16, 8, 4, 3, 6).double()
    image = torch.randn(1, 3, 19, 21, dtype=torch.float64)
    (whole,) = torch.autograd.grad(embed(image)[0].square().sum(), embed.proj.weight)
    tokens = embed.embed_strips(cut(image, 5), (19, 21)).tokens
    (found,) = torch.autograd.grad(tokens.square().sum(), embed.proj.weight)
    torch.testing.assert_close(found, whole)


def test_strips_that_are_not_the_image() -> None:
    embed = PatchEmbed(16, 8, 8, 3, 6)
    image = torch.randn(1, 3, 32, 16)
    with pytest.raises(ShapeError, match="end after 4 of 5 rows of patches; give all strips"):
        embed.embed_strips(cut(image, 8), (40, 16))
    with pytest.raises(ShapeError, match="reach down to row 3, and the image is to have 2x2 patches"):
        embed.embed_strips(cut(image, 8), (16, 16))
    with pytest.raises(ShapeError, match="strips of 2 patches per row"):
        embed.embed_strips(cut(image, 8), (32, 24))
    with pytest.raises(ShapeError, match=r"expected strips of images \[B, 3, r, W\], got \[1, 1, 8, 16\]"):
        embed.embed_strips(cut(image[:, :1], 8), (32, 16))
    with pytest.raises(ShapeError, match="an image of 4x16 is smaller than a patch of 8x8"):
        embed.embed_strips(cut(image[:, :, :4], 8), (4, 16))
    with pytest.raises(ShapeError, match="end after 0 of 2 rows"):
        gather_patches(convolved_strips(embed.proj, []), (2, 2))
