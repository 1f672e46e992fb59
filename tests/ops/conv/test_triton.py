"""The convolution's Triton kernels: on a GPU as they are, elsewhere in Triton's interpreter. Hence the small shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, library, nn

from tests.ops.conv.test_conv import by_torch
from tests.ops.scan.cases import FLOORS, GPU, device_of, needs_gpu, needs_triton, placed, relative_error, use
from vision_ssm.errors import BackendError
from vision_ssm.ops import causal_conv1d

pytestmark = needs_triton

ROWS = 32  # tokens of a tile of the forward pass
DIRECTIONS = [(False,), (True,), (False, True)]
both = DIRECTIONS[2]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)


class Call(NamedTuple):
    """One convolution and the gradient of its result."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor
    reverse: tuple[bool, ...]
    activation: bool = True

    def run(self) -> dict[str, Tensor]:
        """Return the result and the gradients of x, weight and bias."""
        here = (placed(x, device_of("triton")) for x in self[:3])
        x, weight, bias = (None if v is None else v.detach().requires_grad_() for v in here)
        assert x is not None and weight is not None
        grad = placed(self.grad, device_of("triton"))
        y = causal_conv1d(x, weight, bias, reverse=self.reverse, activation=self.activation)
        inputs = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
        found = torch.autograd.grad(y, list(inputs.values()), grad)
        return {n: v.detach().cpu() for n, v in zip(("y", *inputs), (y, *found), strict=True)}

    def exact(self) -> dict[str, Tensor]:
        """The same by torch's convolution in float64."""
        x, weight, bias = (None if v is None else v.double().requires_grad_() for v in self[:3])
        assert x is not None and weight is not None
        y = by_torch(x, weight, bias, self.reverse, self.activation)
        inputs = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
        found = torch.autograd.grad(y, list(inputs.values()), self.grad.double())
        return dict(zip(("y", *inputs), (y.detach(), *found), strict=True))

    def check(self) -> None:
        """Hold the kernels to rounding: they add in float32 whatever the dtype, and the parameters are float32.

        The interpreter cuts to bfloat16 what a GPU rounds to it.
        """
        floors = FLOORS if GPU else {**FLOORS, torch.bfloat16: 2 * FLOORS[torch.bfloat16]}
        expected, found = self.exact(), self.run()
        for name, value in found.items():
            assert value.dtype == (self.x.dtype if name in ("y", "x") else torch.float32), name
            assert value.shape == expected[name].shape, name
            error = relative_error(value, expected[name])
            assert error <= floors[value.dtype], f"{name}: {error:.2e}"


def draw(
    tokens: int,
    reverse: tuple[bool, ...] = both,
    *,
    batch: int = 2,
    channels: int = 5,
    taps: int = 4,
    dtype: torch.dtype = torch.float32,
    with_bias: bool = True,
    activation: bool = True,
) -> Call:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = len(reverse)
    return Call(
        normal(batch, tokens, channels).to(dtype),
        normal(directions, channels, taps),
        normal(directions, channels) if with_bias else None,
        normal(batch, directions, tokens, channels).to(dtype),
        reverse,
        activation,
    )


def poisoned(x: Tensor, every_other: bool) -> Tensor:
    """The same values within a wider tensor of NaN: before and after its tokens, beside or between its channels."""
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 2, 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    inner = wide[..., 1:-1, :]
    return (inner[..., ::2] if every_other else inner.chunk(2, -1)[0]).copy_(x)


def test_these_are_the_kernels_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_ssm.ops.conv import triton as triton_conv

    ran = []

    def recorded(name: str) -> Callable[..., object]:
        kernel = getattr(triton_conv, name)
        return lambda *args: ran.append(name) or kernel(*args)

    for name in ("forward", "backward"):
        monkeypatch.setattr(triton_conv, name, recorded(name))
    draw(3).run()
    assert ran == ["forward", "backward"]


@pytest.mark.parametrize(
    "tokens", [1, 3, 4, *(pytest.param(tokens, marks=pytest.mark.slow) for tokens in (2, 5, ROWS - 1, ROWS)), ROWS + 1]
)
@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_lengths(tokens: int, reverse: tuple[bool, ...]) -> None:
    draw(tokens, reverse, batch=1 if tokens < 5 else 2).check()


def test_several_tiles_and_pieces() -> None:
    draw(2 * ROWS + 3, batch=3).check()


@pytest.mark.parametrize("taps", [1, 2, 8])
@pytest.mark.parametrize("tokens", [1, *(pytest.param(tokens, marks=pytest.mark.slow) for tokens in (7, 8)), 19])
def test_numbers_of_taps(taps: int, tokens: int) -> None:
    for reverse in DIRECTIONS:
        draw(tokens, reverse, taps=taps, batch=1).check()


@pytest.mark.parametrize("channels", [1, 33, 64, 65, 130])
def test_numbers_of_channels(channels: int) -> None:
    draw(6, channels=channels).check()


@pytest.mark.parametrize("reverse", [(True, False), (True, True), (False, True, True)])
def test_other_directions(reverse: tuple[bool, ...]) -> None:
    draw(6, reverse).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [5, ROWS + 2])
def test_dtypes(dtype: torch.dtype, tokens: int) -> None:
    draw(tokens, dtype=dtype, channels=33).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("with_bias", "activation"), [(False, True), (True, False), (False, False)])
def test_missing_options(dtype: torch.dtype, with_bias: bool, activation: bool) -> None:
    draw(9, dtype=dtype, with_bias=with_bias, activation=activation).check()


@pytest.mark.parametrize(("tokens", "every_other"), [(3, True), (ROWS + 1, False)])
def test_strided_tensors_give_the_same_and_nothing_outside_is_read(tokens: int, every_other: bool) -> None:
    call = draw(tokens, channels=7)
    assert call.bias is not None
    parameters = (poisoned(p, every_other) for p in (call.weight, call.bias))
    strided = Call(poisoned(call.x, every_other), *parameters, poisoned(call.grad, every_other), call.reverse)
    # Directions between tokens and channels.
    turned = call._replace(grad=call.grad.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3))
    expected = call.run()
    for found in (strided.run(), turned.run()):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_expanded_tensors() -> None:
    call = draw(6, batch=1)
    call = call._replace(x=call.x.expand(3, -1, -1), grad=torch.tensor(0.5).expand(3, 2, 6, 5))
    call.check()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, int, int]) -> None:
    batch, tokens, channels = shape
    found = draw(tokens, batch=batch, channels=channels).run()
    assert found["y"].shape == (batch, 2, tokens, channels) and found["x"].shape == shape
    assert found["weight"].shape == (2, channels, 4) and not found["weight"].abs().sum()
    assert found["bias"].shape == (2, channels) and not found["bias"].abs().sum()


@pytest.mark.parametrize("shortest", [1, 3])
@pytest.mark.parametrize("programs", [pytest.param(1, marks=pytest.mark.slow), 2, 1024])
def test_many_pieces_and_several_in_turn(shortest: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces shorter than the taps reach, a last piece with fewer tokens, a last set with fewer pieces."""
    from vision_ssm.ops.conv import triton as triton_conv

    monkeypatch.setattr(triton_conv, "SHORTEST", shortest)
    monkeypatch.setattr(triton_conv, "PROGRAMS", programs)
    pieces = triton_conv.cut(3, 11, 5)
    assert pieces.programs <= programs and (pieces.per_image > 1) == (programs > 1)
    draw(11, batch=3).check()
    assert (triton_conv.cut(9, 3, 5).turns > 1) == (programs <= 2)
    draw(3, batch=9).check()


@pytest.mark.parametrize(
    ("batch", "tokens", "channels"),
    [(1, 1, 1), (1, 197, 384), (256, 197, 384), (64, 1025, 768), (1, 100_000, 384), (100_000, 5, 16), (1, 50, 200_000)],
)
def test_the_pieces_cover_the_tokens_and_their_parts_stay_few(batch: int, tokens: int, channels: int) -> None:
    from vision_ssm.ops.conv import triton as triton_conv

    pieces, blocks = triton_conv.cut(batch, tokens, channels), -(-channels // triton_conv.BLOCK)
    assert (pieces.per_image - 1) * pieces.tokens < tokens <= pieces.per_image * pieces.tokens
    assert batch * pieces.per_image <= pieces.programs * pieces.turns * triton_conv.LINES
    assert pieces.programs * blocks <= triton_conv.PROGRAMS + blocks
    assert pieces.tokens >= min(tokens, triton_conv.SHORTEST)
    # Turns are for images that are lines enough uncut.
    assert pieces.turns == 1 or pieces.per_image == 1


@pytest.mark.filterwarnings("ignore:overflow encountered")  # exp(-a) of the sigmoid, in numpy
def test_large_values_stay_finite() -> None:
    call = draw(9)
    call = call._replace(x=call.x * torch.tensor([1.0, 1e2, -1e3, 1e4, -1e8]))
    call.check()


def test_a_value_that_is_not_finite_stays_within_reach() -> None:
    call = draw(20, batch=1, channels=3)
    call.x[0, 10, 1] = float("nan")
    found = call.run()
    back, ahead = (found["y"][0, k, :, 1].isnan().nonzero().flatten().tolist() for k in range(2))
    assert back == [10, 11, 12, 13] and ahead == [7, 8, 9, 10]
    assert found["x"][0, :, 1].isnan().nonzero().flatten().tolist() == list(range(7, 14))
    for others in (found["y"][..., ::2], found["x"][..., ::2], found["weight"][:, ::2], found["bias"][:, ::2]):
        assert torch.isfinite(others).all()


@pytest.mark.skipif(GPU, reason="a file takes the place of memory that no GPU has")
def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """A sparse file, of which only the pages that are read exist."""
    step = 2**30
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 * step + 64, dtype=torch.bfloat16)
    near = draw(4, batch=1, dtype=torch.bfloat16)
    x = file.as_strided((1, 4, 5), (0, step, 1)).copy_(near.x)
    grad = file.as_strided((1, 2, 4, 5), (0, 16, step, 1), 16).copy_(near.grad)
    by_tokens = near._replace(x=x, grad=grad).run()
    assert all(torch.equal(by_tokens[name], value) for name, value in near.run().items())
    near = draw(4, batch=4, dtype=torch.bfloat16)
    x = file.as_strided((4, 4, 5), (step, 5, 1)).copy_(near.x)
    by_images = near._replace(x=x).run()
    assert all(torch.equal(by_images[name], value) for name, value in near.run().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_call_gives_the_same_bits_also_under_autocast(dtype: torch.dtype) -> None:
    call = draw(35, dtype=dtype, channels=70, batch=1)
    first = call.run()
    with torch.autocast(device_of("triton").type, torch.float16 if dtype == torch.bfloat16 else torch.bfloat16):
        second = call.run()
    assert all(torch.equal(first[name], value) and value.dtype == first[name].dtype for name, value in second.items())


def test_what_the_kernels_do_not_take_is_done_by_torch() -> None:
    draw(12, taps=9).check()
    x = torch.randn(2, 6, 3, dtype=torch.float64, device=device_of("triton"))
    weight = torch.randn(2, 3, 4, dtype=torch.float64, device=x.device)
    torch.testing.assert_close(causal_conv1d(x, weight, reverse=both), by_torch(x, weight, None, both, True))


@pytest.mark.parametrize("activation", [True, False])
def test_opcheck(activation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # tracing replaces torch.empty itself
    use(monkeypatch)
    call = draw(6, channels=3)
    assert call.bias is not None
    here = (placed(v, device_of("triton")) for v in (call.x, call.weight, call.bias))
    inputs = tuple(v.clone().requires_grad_() for v in here if v is not None)
    library.opcheck(torch.ops.vision_ssm.causal_conv1d.default, (*inputs, list(both), activation))


class _Mixer(nn.Module):
    """A convolution as a network has it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 64)
        self.weight = nn.Parameter(torch.randn(2, 32, 4))
        self.bias = nn.Parameter(torch.randn(2, 32))

    def forward(self, x: Tensor) -> Tensor:
        hidden, z = self.project(x).chunk(2, -1)
        return causal_conv1d(hidden, self.weight, self.bias, reverse=both).sum(1) * z


def _compare(model: nn.Module, compiled: nn.Module, x: Tensor) -> None:
    parameters = list(model.parameters())
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    use(monkeypatch)
    torch.manual_seed(0)
    model = _Mixer().to(device_of("triton"))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (7, 5):
        _compare(model, compiled, torch.randn(2, tokens, 32, device=device_of("triton")))


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_with_inductor_and_cuda_graphs(mode: str) -> None:
    torch.manual_seed(0)
    model = _Mixer().cuda()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        _compare(model, compiled, torch.randn(2, 700, 32, device="cuda"))


@needs_gpu
def test_a_captured_graph_gives_the_same() -> None:
    call = draw(700, channels=96, dtype=torch.bfloat16)
    x, weight, bias, grad = (v.cuda() for v in (call.x, call.weight, call.bias, call.grad) if v is not None)
    args = (x, weight, bias, list(both), True)

    def run() -> tuple[Tensor, ...]:
        y = torch.ops.vision_ssm.causal_conv1d(*args)
        return (y, *torch.ops.vision_ssm.causal_conv1d_backward(grad, *args))

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for value in found:
        value.zero_()
    graph.replay()
    for value, should_be in zip(found, expected, strict=True):
        torch.testing.assert_close(value, should_be, rtol=0, atol=0)


@needs_gpu
def test_a_gpu_without_the_backend_is_refused_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunked")
    x, weight, bias = (torch.zeros(shape, device="cuda") for shape in ((1, 5, 3), (1, 3, 4), (1, 3)))
    with pytest.raises(BackendError, match="no kernel for cuda:0 on the backend 'chunked'"):
        torch.ops.vision_ssm.causal_conv1d(x, weight, bias, [False], True)
    assert causal_conv1d(x, weight, bias).shape == (1, 1, 5, 3)
