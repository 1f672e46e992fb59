"""The residual addition joined to its norm: Triton's kernels, on a GPU as they are, elsewhere in its interpreter."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, library
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.scan.cases import FLOORS, device_of, needs_triton, placed, relative_error, use
from vision_ssm.errors import BackendError, ConfigError, ShapeError
from vision_ssm.ops import add_norm, add_norm_applies
from vision_ssm.ops.add_norm import op as norm
from vision_ssm.ops.add_norm import reference
from vision_ssm.ops.add_norm.contract import NORMS

pytestmark = needs_triton

NAMES = ("x", "added", "weight", "bias")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)


@dataclass(frozen=True)
class Case:
    """One call: its inputs, and which of its two results a gradient comes into."""

    tensors: dict[str, Tensor | None]
    kind: str
    eps: float = 1e-5
    into: tuple[int, ...] = (0, 1)

    def run(self, how: object, dtype: torch.dtype | None = None) -> dict[str, Tensor | None]:
        """Results and gradients by name; the gradients that come in are the same whatever the dtype."""
        leaves = {}
        for name, x in self.tensors.items():
            here = placed(x, device_of("triton"))
            leaves[name] = None if here is None else here.detach().to(dtype or here.dtype).requires_grad_()
        found: tuple[Tensor, ...] = how(*leaves.values(), self.eps, self.kind)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(1)
        entering = [torch.randn(y.shape, generator=generator).to(BF16).to(y) for y in found]
        present = [x for x in leaves.values() if x is not None]
        total = sum((found[i] * entering[i]).sum() for i in self.into)
        gradients = iter(torch.autograd.grad(total, present, allow_unused=True))
        results: dict[str, Tensor | None] = {"stream": found[0].detach(), "normalised": found[1].detach()}
        return results | {f"d{name}": None if x is None else next(gradients) for name, x in leaves.items()}

    def check(self) -> None:
        """Hold the kernels to twice plain torch's error, plus a few units in the last place, and to its dtypes."""
        exact, plain, ours = self.run(reference.forward, torch.float64), self.run(reference.forward), self.run(add_norm)
        for name, value in ours.items():
            expected, usual = exact[name], plain[name]
            if value is None or expected is None or usual is None:
                assert value is expected is usual, name
                continue
            assert value.dtype == usual.dtype and value.shape == usual.shape, name
            assert torch.isfinite(value).all(), f"{name} has elements that are not finite"
            error, allowed = relative_error(value, expected), relative_error(usual, expected)
            assert error <= 2 * allowed + FLOORS[value.dtype], f"{name}: {error:.2e}, plain torch {allowed:.2e}"


def case(
    lead: tuple[int, ...],
    channels: int,
    kind: str,
    dtypes: tuple[torch.dtype, ...] = (F32, F32, F32),
    *,
    bias: bool = True,
    **options: object,
) -> Case:
    """Random inputs: x far from zero, so that the mean counts; dtypes of x, added, and the parameters."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((*lead, channels), (*lead, channels), (channels,), (channels,))
    of = (*dtypes, dtypes[2])
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip(shapes, of, strict=True)]
    tensors: dict[str, Tensor | None] = dict(zip(NAMES, drawn, strict=True))
    tensors["x"] = (drawn[0] + 1.5).to(of[0])
    return Case(tensors if bias else {**tensors, "bias": None}, kind, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("rows", [1, 43])  # 43 are no whole number of tiles, and more than there are programs
@pytest.mark.parametrize("channels", [1, 33, 192, 256])
def test_widths_and_numbers_of_rows(channels: int, rows: int, kind: str) -> None:
    # A single channel is its own deviation but for epsilon: with a small one its gradient is rounding.
    case((rows,), channels, kind, eps=1.0 if channels == 1 else 1e-5).check()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("into", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_into_either_result(into: tuple[int, ...], bias: bool, kind: str) -> None:
    case((2, 7), 20, kind, bias=bias, into=into).check()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(
    "dtypes",
    [
        (F32, BF16, BF16),
        (F32, BF16, F32),
        (BF16, BF16, BF16),
        (BF16, F32, F32),
        (F16, F16, F16),
        (F32, F16, F16),
        (F16, BF16, F32),
    ],
)
@pytest.mark.parametrize("into", [(0,), (0, 1)])
def test_dtypes(dtypes: tuple[torch.dtype, ...], into: tuple[int, ...], kind: str) -> None:
    case((9,), 48, kind, dtypes, into=into).check()


@pytest.mark.parametrize("kind", NORMS)
def test_what_is_normalised_is_the_stream_as_it_is_stored(kind: str) -> None:
    x, added, weight, bias = _here(case((9,), 48, kind, (BF16, BF16, F32)))
    stream, normalised = add_norm(x, added, weight, bias, kind=kind)
    assert torch.equal(normalised, add_norm(stream, torch.zeros_like(x), weight, bias, kind=kind)[1])


@pytest.mark.parametrize("kind", NORMS)
def test_a_row_as_wide_as_a_program_holds_and_no_wider(kind: str) -> None:
    case((3,), 4096, kind).check()
    wide = case((1,), 4097, kind)
    assert not add_norm_applies(*_here(wide))
    ours, plain = wide.run(add_norm), wide.run(reference.forward)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours.values(), plain.values(), strict=True))


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # the interpreter's, in such rows
@pytest.mark.parametrize("kind", NORMS)
def test_without_epsilon_rows_beyond_the_end_are_in_no_sum(kind: str) -> None:
    case((5,), 24, kind, eps=0.0).check()


def test_a_mean_much_larger_than_the_deviation() -> None:
    far = case((6,), 40, "layer")
    assert far.tensors["x"] is not None
    Case({**far.tensors, "x": far.tensors["x"] + 1000}, "layer").check()


@pytest.mark.parametrize("kind", NORMS)
def test_strided_and_expanded_inputs(kind: str) -> None:
    straight = case((2, 3, 4), 24, kind)
    x, added = straight.tensors["x"], straight.tensors["added"]
    assert x is not None and added is not None
    wide = torch.full((2, 3, 4, 32), float("nan"))
    wide[..., :24] = x
    channel_first = added.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    moved = {**straight.tensors, "x": wide[..., :24], "added": channel_first}
    expected, found = straight.run(add_norm), Case(moved, kind).run(add_norm)
    assert all(torch.equal(found[name], value) for name, value in expected.items())  # type: ignore[arg-type]
    assert found["stream"].is_contiguous() and found["normalised"].is_contiguous()  # type: ignore[union-attr]
    repeated = {**straight.tensors, "x": x[:1, :1, :1].expand(2, 3, 4, 24)}
    Case(repeated, kind).check()


@pytest.mark.parametrize("kind", NORMS)
def test_gradients_that_are_strided_or_expanded(kind: str) -> None:
    x, added, weight, bias = (x.requires_grad_() for x in _here(case((2, 5), 20, kind)))
    results = add_norm(x, added, weight, bias, kind=kind)
    rows = torch.randn(20, 10, device=x.device).T.unflatten(0, (2, 5))
    ones = torch.ones((), device=x.device).expand(2, 5, 20)
    for entering in ((rows, ones), (ones, rows)):
        found = torch.autograd.grad(results, (x, added, weight, bias), entering, retain_graph=True)
        tidy = [g.contiguous() for g in entering]
        assert all(map(torch.equal, found, torch.autograd.grad(results, (x, added, weight, bias), tidy, True)))


@pytest.mark.parametrize("lead", [(0,), (2, 0)])
@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (F32, BF16, BF16)])
def test_nothing_in_nothing_out(lead: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    empty = case(lead, 12, "layer", dtypes)
    found, expected = empty.run(add_norm), empty.run(reference.forward)
    for name, value in found.items():
        assert value is not None and value.shape == expected[name].shape and value.dtype == expected[name].dtype  # type: ignore[union-attr]
        assert not value.abs().sum()


@pytest.mark.parametrize("kind", NORMS)
def test_the_same_call_gives_the_same_bits_also_under_autocast(kind: str) -> None:
    ragged = case((43,), 33, kind, (F32, BF16, F32))
    first = ragged.run(add_norm)
    with torch.autocast(device_of("triton").type, BF16):
        second = ragged.run(add_norm)
    assert all(torch.equal(first[name], second[name]) for name in first)  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", ["x", "added", "weight", "bias"])
def test_one_gradient_alone(wanted: str) -> None:
    mixed = case((5,), 12, "layer", (F32, BF16, F32))
    every = mixed.run(add_norm)
    leaves = dict(zip(NAMES, _here(mixed), strict=True))
    leaves[wanted].requires_grad_()
    results = add_norm(*leaves.values(), kind="layer")
    generator = torch.Generator().manual_seed(1)
    entering = [torch.randn(y.shape, generator=generator).to(BF16).to(y) for y in results]
    (alone,) = torch.autograd.grad(results, leaves[wanted], entering)
    assert torch.equal(alone, every[f"d{wanted}"])  # type: ignore[arg-type]


def test_without_gradients_nothing_is_kept() -> None:
    tensors = _here(case((5,), 12, "rms"))
    assert not any(y.requires_grad for y in add_norm(*tensors))
    with torch.inference_mode():
        assert torch.equal(add_norm(*tensors)[0], tensors[0] + tensors[1])


def test_what_does_not_fit_is_told() -> None:
    x, added, weight, bias = _here(case((5,), 12, "rms"))
    with pytest.raises(ShapeError, match=r"added of the same shape, got \[5, 12\] and \[4, 12\]"):
        add_norm(x, added[1:], weight, bias)
    with pytest.raises(ShapeError, match=r"weight \[12\], got \[11\]"):
        add_norm(x, added, weight[1:], bias)
    with pytest.raises(ShapeError, match=r"bias \[12\], got \[1, 12\]"):
        add_norm(x, added, weight, bias[None])
    with pytest.raises(ConfigError, match=r"kind must be one of rms, layer, got 'layr'\. Did you mean 'layer'"):
        add_norm(x, added, weight, bias, kind="layr")


def test_it_applies_where_nothing_watches_and_the_kernels_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, added, weight, bias = _here(case((5,), 12, "rms"))
    assert add_norm_applies(x) and add_norm_applies(x, added, weight, bias) and add_norm_applies(x, added, weight)
    assert not add_norm_applies(x, added[:1], weight, bias)
    assert not add_norm_applies(x, added.double(), weight, bias)
    assert not add_norm_applies(x, added, weight.double(), bias)
    assert not add_norm_applies(x.double(), added, weight, bias)
    assert not add_norm_applies(x, added, weight, bias.to("meta"))
    assert not add_norm_applies(x.as_subclass(_Watched))
    with FlopCounterMode(display=False):
        assert not add_norm_applies(x)
    compiled = torch.compile(lambda x: x + 1 if add_norm_applies(x) else x, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)
    monkeypatch.undo()
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunked")
    assert not add_norm_applies(x)
    for mine, theirs in zip(
        add_norm(x, added, weight, bias), reference.forward(x, added, weight, bias, 1e-5, "rms"), strict=True
    ):
        assert torch.equal(mine, theirs)
    with pytest.raises(BackendError, match="add_norm runs on the 'triton' backend only, not on 'reference'"):
        torch.ops.vision_ssm.add_norm(x, added, weight, bias, 1e-5, "rms")


def test_without_the_interpreter_a_cpu_asks_for_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    # By its module's name: in the package the function hides the module.
    monkeypatch.setattr(sys.modules[add_norm_applies.__module__], "choose", lambda *_: pytest.fail("asked"))
    assert not add_norm_applies(torch.randn(3, 4))


class _Watched(Tensor):
    pass


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (F32, BF16, BF16)])
def test_the_operator_keeps_torchs_rules(dtypes: tuple[torch.dtype, ...]) -> None:
    tensors = [x.requires_grad_() for x in _here(case((5,), 12, "layer", dtypes))]
    # Not test_autograd_registration: it wants a kernel of its own for every device.
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    library.opcheck(torch.ops.vision_ssm.add_norm.default, (*tensors, 1e-5, "layer"), test_utils=tests)
    stream, normalised = (y.detach() for y in add_norm(*tensors, 1e-5, "layer"))
    _, _, weight, bias = (x.detach() for x in tensors)
    for passed, parameters in ((None, True), (stream, False)):
        arguments = (passed, normalised, stream, weight, bias, 1e-5, "layer", dtypes[0], dtypes[1], parameters)
        library.opcheck(torch.ops.vision_ssm.add_norm_backward.default, arguments, test_utils=tests[:2])


def _here(of: Case) -> list[Tensor]:
    """The inputs of a case, all four, where the kernels run."""
    return [x.to(device_of("triton")) for x in of.tensors.values() if x is not None]


def test_small_streams_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, 4, device=device_of("triton"))
    for least, fuses in ((12, True), (13, False)):
        monkeypatch.setattr(norm, "LEAST_ELEMENTS", least)
        assert add_norm_applies(x) is add_norm_applies(x, x, x[0]) is fuses
