"""The SSM in one pass against its reference in float64, and the reference against torch's own convolution."""

from __future__ import annotations

import os
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.scan.cases import FLOORS, atrous, both_ways, cross, each_line, needs_kernel, relative_error
from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import Traversal, selective_scan, selective_ssm, selective_ssm_applies
from vision_ssm.ops.ssm import reference
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.traversal import flatten

pytestmark = needs_kernel


@dataclass
class Layer:
    """Arguments of one call; x and z are halves of one tensor, as in_proj leaves them."""

    tensors: dict[str, Tensor | None]
    traversals: tuple[Traversal, ...]
    reverse: tuple[bool, ...]

    def to(self, dtype: torch.dtype) -> Layer:
        cast = {name: None if x is None else x.to(dtype) for name, x in self.tensors.items()}
        return Layer(cast, self.traversals, self.reverse)

    def run(self) -> Tensor:
        with torch.no_grad():
            return selective_ssm(**self.tensors, traversals=self.traversals, reverse=self.reverse)  # type: ignore[arg-type]

    def reference(self) -> Tensor:
        """The reference of everything, in the tensors' dtype."""
        weights = SsmWeights(**{n: x for n, x in self.tensors.items() if n not in ("x", "z")})  # type: ignore[arg-type]
        x, z = self.tensors["x"], self.tensors["z"]
        assert x is not None
        with mock.patch.dict(os.environ, {"VISION_SSM_BACKEND": "reference"}):
            return reference.forward(x, z, weights, self.traversals, self.reverse)

    def composed(self) -> Tensor:
        """The same in plain torch operations and the reference scan, in the tensors' dtype."""
        t = self.tensors
        x, A_log = t["x"], t["A_log"]
        assert x is not None and A_log is not None
        directions, length = A_log.shape[0], x.shape[1]
        u = x[:, None].expand(-1, directions, -1, -1)
        if t["conv_weight"] is not None and t["conv_bias"] is not None:
            found = []
            for weight, bias, backwards in zip(t["conv_weight"], t["conv_bias"], self.reverse, strict=True):
                sequence = (x.flip(1) if backwards else x).transpose(1, 2)
                sequence = F.conv1d(F.pad(sequence, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(bias))
                convolved = F.silu(sequence).transpose(1, 2)
                found.append(convolved.flip(1) if backwards else convolved)
            u = torch.stack(found, 1).expand(-1, directions, length, -1)
        dt_proj, n = t["dt_proj_weight"], A_log.shape[2]
        assert dt_proj is not None and t["x_proj_weight"] is not None and t["D"] is not None
        projected = torch.einsum("bklc,kpc->bklp", u, t["x_proj_weight"].expand(directions, -1, -1))
        low_rank, b, c = projected.split([dt_proj.shape[2], n, n], -1)
        delta = torch.einsum("bklr,kcr->bklc", low_rank, dt_proj.expand(directions, -1, -1))
        return selective_scan(
            u,
            delta,
            -A_log.float().exp() if x.dtype == torch.bfloat16 else -A_log.exp(),
            b,
            c,
            t["D"],
            t["z"],
            t["dt_proj_bias"],
            traversals=self.traversals,
            backend="reference",
        )


def random_layer(
    walks: tuple[Traversal, ...],
    tokens: int,
    *,
    batch: int = 2,
    channels: int = 20,
    states: int = 16,
    rank: int = 3,
    taps: int = 4,
    gated: bool = True,
    shared: bool = False,
) -> Layer:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    directions, sets = len(walks), 1 if shared else len(walks)
    x, z = normal(batch, tokens, 2 * channels).chunk(2, dim=-1)
    tensors = {
        "x": x,
        "z": z if gated else None,
        "A_log": torch.arange(1, states + 1).log() + 0.1 * normal(directions, channels, states),
        "D": normal(sets, channels),
        "x_proj_weight": normal(sets, rank + 2 * states, channels) / channels**0.5,
        "dt_proj_weight": normal(sets, channels, rank) / rank**0.5,
        "dt_proj_bias": normal(sets, channels) - 2,
        "conv_weight": normal(sets, channels, taps) / 2 if taps else None,
        "conv_bias": normal(sets, channels) / 2 if taps else None,
    }
    reverse = tuple(bool(k % 2) for k in range(sets)) if taps else ()
    return Layer(tensors, walks, reverse)


def check(layer: Layer, dtype: torch.dtype = torch.float32) -> None:
    """At most twice the error of plain torch operations in the same dtype, plus the floor."""
    layer = layer.to(dtype)
    exact, plain, ours = layer.to(torch.float64).reference(), layer.reference(), layer.run()
    assert ours.shape == exact.shape and ours.dtype == dtype
    error, allowed = relative_error(ours, exact), relative_error(plain, exact)
    assert error <= 2 * allowed + FLOORS[dtype], f"{error:.2e}, plain torch {allowed:.2e}"


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 197])
def test_sequence_lengths(instruction_set: str, threads: int, tokens: int) -> None:
    check(random_layer(both_ways(tokens), tokens, batch=1))


@pytest.mark.parametrize("channels", [1, 7, 16, 17, 48, 130])
def test_numbers_of_channels(instruction_set: str, threads: int, channels: int) -> None:
    check(random_layer(both_ways(67), 67, channels=channels))


@pytest.mark.parametrize(("states", "rank"), [(1, 6), (1, 48), (2, 1), (5, 3), (16, 12), (21, 5), (64, 2)])
def test_numbers_of_states_and_ranks(instruction_set: str, states: int, rank: int) -> None:
    check(random_layer(both_ways(70), 70, states=states, rank=rank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("walks", [cross, atrous, each_line])
def test_maps(instruction_set: str, threads: int, walks: object, dtype: torch.dtype) -> None:
    layer = random_layer(walks(9, 11), 99, states=3, taps=0, gated=False)  # type: ignore[operator]
    check(layer, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"shared": True}, {"gated": False}, {"taps": 0}, {"taps": 8}, {"taps": 1}])
def test_options(instruction_set: str, options: dict[str, int], dtype: torch.dtype) -> None:
    check(random_layer(both_ways(80), 80, **options), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_images_are_independent_and_bits_do_not_depend_on_the_team(batch: int) -> None:
    layer = random_layer(both_ways(150), 150, batch=batch, channels=40).to(torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer.run()
        torch.set_num_threads(4)
        assert torch.equal(alone, layer.run())
    finally:
        torch.set_num_threads(before)
    first = Layer(
        {n: x[:1] if x is not None and n in ("x", "z") else x for n, x in layer.tensors.items()},
        layer.traversals,
        layer.reverse,
    )
    assert torch.equal(alone[:1], first.run())


def test_mixed_precision_keeps_the_parameters_in_float32() -> None:
    wide, layer = random_layer(both_ways(130), 130).to(torch.float32), random_layer(both_ways(130), 130)
    mixed = {
        n: x.bfloat16() if x is not None and n in ("x", "z") else wide.tensors[n] for n, x in layer.tensors.items()
    }
    exact = Layer({n: None if x is None else x.double() for n, x in mixed.items()}, layer.traversals, layer.reverse)
    found = Layer(mixed, layer.traversals, layer.reverse).run()
    # Everything between bfloat16 input and output is float32, so only the rounding of the output is left.
    assert found.dtype == torch.bfloat16 and relative_error(found, exact.reference()) < 2.0**-9


def applies(layer: Layer) -> bool:
    parameters = [x for n, x in layer.tensors.items() if x is not None and n not in ("x", "z")]
    x = layer.tensors["x"]
    assert x is not None
    return selective_ssm_applies(x, layer.traversals, parameters, layer.tensors["conv_weight"])


def test_it_applies_to_inference_on_the_kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISION_SSM_BACKEND", raising=False)
    layer = random_layer(both_ways(10), 10).to(torch.float32)
    assert applies(layer)
    assert not applies(layer.to(torch.float64)) and not applies(layer.to(torch.float16))
    assert not applies(random_layer(both_ways(10), 10, taps=9).to(torch.float32))
    assert not applies(Layer(layer.tensors, (Traversal.sequence(9), Traversal.sequence(10)), layer.reverse))
    assert not applies(Layer({**layer.tensors, "D": torch.ones(2, 20).bfloat16()}, layer.traversals, layer.reverse))
    learned = Layer({**layer.tensors, "D": torch.ones(2, 20, requires_grad=True)}, layer.traversals, layer.reverse)
    assert not applies(learned)
    with torch.no_grad():
        assert applies(learned)
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunked")
    assert not applies(layer)
    torch.testing.assert_close(layer.run(), layer.reference(), rtol=1e-4, atol=1e-5)
    with pytest.raises(BackendError, match="runs on the 'cpu' backend only, not on 'reference'"):
        call_registered(layer)


def call_registered(layer: Layer) -> Tensor:
    order = ("x", "z", *SsmWeights._fields)
    tensors = [layer.tensors[name] for name in order]
    y: Tensor = torch.ops.vision_ssm.selective_ssm(*tensors, flatten(layer.traversals), list(layer.reverse))
    return y


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"gated": False}, {"taps": 0}, {"taps": 9}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_reference_is_torchs_own_operations_one_after_the_other(
    options: dict[str, int], dtype: torch.dtype
) -> None:
    layer = random_layer(both_ways(23), 23, **options).to(dtype)  # type: ignore[arg-type]
    torch.testing.assert_close(layer.reference(), layer.composed())


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"taps": 0}])
def test_where_a_gradient_is_wanted_it_is_that_of_the_composition(options: dict[str, int]) -> None:
    layer = random_layer(both_ways(23), 23, **options).to(torch.float64)  # type: ignore[arg-type]
    learned = {n: None if x is None else x.clone().requires_grad_() for n, x in layer.tensors.items()}
    present = [x for x in learned.values() if x is not None]
    expected = torch.autograd.grad(Layer(learned, layer.traversals, layer.reverse).composed().square().sum(), present)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        leaves = {n: None if x is None else x.detach().to(dtype).requires_grad_() for n, x in learned.items()}
        y = selective_ssm(**leaves, traversals=layer.traversals, reverse=layer.reverse)  # type: ignore[arg-type]
        found = torch.autograd.grad(y.square().sum(), [x for x in leaves.values() if x is not None])
        for mine, true in zip(found, expected, strict=True):
            assert relative_error(mine, true) < tolerance


def test_a_gate_alone_may_be_learned() -> None:
    layer = random_layer(both_ways(10), 10).to(torch.float32)
    z = layer.tensors["z"]
    assert z is not None
    gate = z.clone().requires_grad_()
    y = selective_ssm(**{**layer.tensors, "z": gate}, traversals=layer.traversals, reverse=layer.reverse)  # type: ignore[arg-type]
    assert torch.autograd.grad(y.sum(), gate)[0].abs().sum() > 0


def test_the_registered_operator_refuses_a_gradient_rather_than_losing_it() -> None:
    layer = random_layer(both_ways(10), 10).to(torch.float32)
    learned = {n: None if x is None else x.clone().requires_grad_() for n, x in layer.tensors.items()}
    y = call_registered(Layer(learned, layer.traversals, layer.reverse))
    with pytest.raises(BackendError, match="has no gradient"):
        y.sum().backward()


def test_walks_outside_the_tokens_are_refused() -> None:
    layer = random_layer(both_ways(10), 10).to(torch.float32)
    with pytest.raises(ShapeError, match=r"visits tokens 0\.\.10"):
        Layer(layer.tensors, both_ways(11), layer.reverse).run()
