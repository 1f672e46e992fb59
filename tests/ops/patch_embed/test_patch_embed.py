"""Patches embedded in one call against the float64 convolution, class tokens and positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from vision_ssm.errors import ShapeError
from vision_ssm.ops import embed_patches, embed_patches_applies
from vision_ssm.ops.native import instruction_set
from vision_ssm.ops.patch_embed import cpu, reference

pytestmark = needs_kernel
needs_vectors = pytest.mark.skipif(instruction_set() == "portable", reason="portable code is left alone")

Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, tuple[int, ...]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def arguments(
    images: Tensor, embed: int, side: int, stride: int, places: tuple[int, ...] = (), *, bias: bool = True
) -> Arguments:
    channels = images.shape[1]
    grid = [(size - side + stride - 1) // stride + 1 for size in images.shape[2:]]
    weight = draw(embed, channels, side, side, seed=1) * (channels * side * side) ** -0.5
    rows = draw(1, len(places), embed, seed=2) if places else None
    positions = draw(1, grid[0] * grid[1] + len(places), embed, seed=3)
    return images, weight, draw(embed, seed=4) if bias else None, positions, rows, places


def cast(given: Arguments, dtype: torch.dtype) -> Arguments:
    *tensors, places = given
    return *(None if t is None else t.to(dtype) for t in tensors), places  # type: ignore[return-value]


def composed(given: Arguments, stride: int) -> Tensor:
    """The same in plain torch operations."""
    images, weight, bias, positions, rows, places = given
    side = weight.shape[3]
    right, bottom = (-(size - side) % stride for size in (images.shape[3], images.shape[2]))
    patches = F.conv2d(F.pad(images, (0, right, 0, bottom)), weight, bias, stride).flatten(2).transpose(1, 2)
    tokens = list(patches.unbind(1))
    for i, place in enumerate(places):
        assert rows is not None
        tokens.insert(place, rows[:, i].expand(images.shape[0], -1))
    return torch.stack(tokens, 1) + positions


def check(given: Arguments, stride: int) -> None:
    """An error of at most twice that of plain operations in float32 from the same numbers, plus the floor."""
    found = cpu.forward(*given, stride)
    exact, plain = (reference.forward(*cast(given, dtype), stride) for dtype in (torch.float64, torch.float32))
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + FLOORS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "embed", "side", "stride", "places"),
    [
        ((1, 3, 224, 224), 24, 16, 16, (98,)),
        ((2, 3, 37, 50), 25, 8, 8, (0,)),
        ((3, 1, 16, 16), 5, 16, 16, ()),
        ((1, 2, 45, 33), 17, 9, 5, (0, 55)),
        ((1, 3, 40, 41), 70, 20, 1, ()),
        ((2, 13, 30, 64), 96, 16, 8, (3, 4)),
    ],
)
def test_matches_the_composition(
    instruction_set: str,
    threads: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    embed: int,
    side: int,
    stride: int,
    places: tuple[int, ...],
) -> None:
    """Edges beyond the image, overlapping patches, class tokens anywhere, widths that are not whole vectors."""
    check(cast(arguments(draw(*shape), embed, side, stride, places), dtype), stride)


@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: F.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
)
def test_images_lie_anywhere(lay: Callable[[Tensor], Tensor]) -> None:
    check(arguments(lay(draw(2, 3, 32, 48)), 24, 8, 8, (5,), bias=False), 8)


def test_nan_stays_in_its_patch() -> None:
    images = draw(1, 3, 32, 32)
    images[0, 1, 9, 25] = float("nan")
    found = embed_patches(*arguments(images, 24, 8, 8, (0,)), stride=8)
    assert found.isnan().any(2)[0].nonzero().flatten().tolist() == [1 + 1 * 4 + 3]
    assert embed_patches(*arguments(images[:0], 24, 8, 8, (0,)), stride=8).shape == (0, 17, 24)


@needs_vectors
def test_stands_back_where_it_would_be_wrong_or_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, bias, positions, rows, places = arguments(draw(1, 3, 32, 32), 24, 8, 8, (0,))

    def applies(images: Tensor = images, weight: Tensor = weight, positions: Tensor = positions) -> bool:
        return embed_patches_applies(images, weight, bias, positions, rows, places, stride=8)

    assert applies()
    assert not applies(images=images.double())
    assert not applies(weight=weight.bfloat16())
    assert not applies(images=torch._neg_view(images))
    assert not applies(images=images[:0])
    assert not applies(positions=positions[:, :1])
    assert not applies(weight=weight[:, :, :7, :7])
    learned = weight.clone().requires_grad_()
    assert not applies(weight=learned)
    with torch.no_grad():
        assert applies(weight=learned)
    with FlopCounterMode(display=False):
        assert not applies()
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies()
    half = cast((images, weight, bias, positions, rows, places), torch.bfloat16)
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: True)
    assert not embed_patches_applies(*half, stride=8)
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)
    assert embed_patches_applies(*half, stride=8)


def test_what_does_not_fit_is_named() -> None:
    images, weight, bias, positions, rows, _ = arguments(draw(1, 3, 32, 32), 24, 8, 8, (0,))
    with pytest.raises(ShapeError, match="stride of 1 to P"):
        embed_patches(images, weight, bias, positions, rows, (0,), stride=9)
    with pytest.raises(ShapeError, match="smaller than a patch"):
        embed_patches(images[:, :, :7], weight, bias, positions, rows, (0,), stride=8)
    with pytest.raises(ShapeError, match=r"positions must be \[1, 17, 24\]"):
        embed_patches(images, weight, bias, positions[:, 1:], rows, (0,), stride=8)
    with pytest.raises(ShapeError, match="weight must be"):
        embed_patches(images[:, :2], weight, bias, positions, rows, (0,), stride=8)
    for rows_given, places in ((rows, ()), (None, (0,)), (rows, (17,)), (rows, (-1,))):
        with pytest.raises(ShapeError):
            embed_patches(images, weight, bias, positions, rows_given, places, stride=8)
    with pytest.raises(ShapeError, match="stride of 1 to P"):
        embed_patches(images[:, :0], weight[:, :0], bias, positions, rows, (0,), stride=8)


@pytest.mark.parametrize("places", [(), (0,), (8,), (0, 17), (3, 4)])
def test_the_reference_puts_class_tokens_at_their_places(places: tuple[int, ...]) -> None:
    given = cast(arguments(draw(2, 3, 30, 29), 6, 8, 8, places), torch.float64)
    torch.testing.assert_close(reference.forward(*given, 8), composed(given, 8))


def test_where_no_call_applies_it_is_the_reference() -> None:
    """Other dtypes, views that the kernel cannot read, and gradients."""
    given = arguments(draw(1, 3, 32, 32), 24, 8, 8, (0,))
    wide = cast(given, torch.float64)
    assert torch.equal(embed_patches(*wide, stride=8), reference.forward(*wide, 8))
    torch.testing.assert_close(
        embed_patches(torch._neg_view(given[0]), *given[1:], stride=8), composed((-given[0], *given[1:]), 8)
    )
    images, weight, bias, positions, rows, _ = given
    assert bias is not None and rows is not None
    leaves = [t.requires_grad_() for t in (images, weight, bias, positions, rows)]
    found = torch.autograd.grad(embed_patches(*given, stride=8).square().sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(composed(given, 8).square().sum(), leaves))
