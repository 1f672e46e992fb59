"""Blocks run in one call where nobody looks inside, and module by module where somebody does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vision_ssm.layers import Block, VimMixer, make_norm, untouched
from vision_ssm.layers.one_call import Column
from vision_ssm.ops.native import MISSING, KernelCall, instruction_set

needs_vectors = pytest.mark.skipif(instruction_set() == "portable", reason="portable code is left alone")
needs_kernel = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def block(**options: object) -> Block:
    torch.manual_seed(0)
    return Block(make_norm("rms", 32), VimMixer(32, states=4, **options)).eval()  # type: ignore[arg-type]


def calls_of(run: Callable[[], object]) -> list[str]:
    """The kernels that are called."""
    calls, plain = [], KernelCall.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelCall, "run", lambda self, name: calls.append(name) or plain(self, name))  # type: ignore[func-returns-value]
        run()
    return calls


def modules_called(model: Block, x: Tensor) -> bool:
    """Whether a block runs module by module, and gives what it does so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untouched, "_watched", lambda: True)
        expected = model(x)
    found: list[Tensor] = []
    calls = calls_of(lambda: found.append(model(x)))
    assert torch.allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    return calls != ["vssm_vim_blocks_forward"]


def try_one_call(blocks: nn.ModuleList, x: Tensor, column: Column | None = None) -> Tensor | None:
    segments = (column or Column()).segments(blocks, x)
    return None if segments is None else segments(x, 0, len(blocks))


@needs_kernel
@pytest.mark.parametrize("grad", [False, True])
def test_one_call_gives_what_the_modules_give(grad: bool) -> None:
    model, x = block(), torch.randn(2, 40, 32)
    with torch.set_grad_enabled(grad):
        assert not modules_called(model, x)
        assert torch.allclose(model(x), x + model.branch(x), rtol=1e-5, atol=1e-6)


@needs_kernel
@pytest.mark.parametrize("inside", ["mixer", "norm", "mixer.in_proj", "mixer.out_proj", "mixer.ssm"])
def test_a_hook_inside_is_called(inside: str) -> None:
    model, x, met = block(), torch.randn(1, 9, 32), []
    handle = model.get_submodule(inside).register_forward_hook(lambda *_: met.append(inside))
    with torch.no_grad():
        assert modules_called(model, x)
        assert met
        handle.remove()
        assert not modules_called(model, x)


@needs_kernel
def test_a_replaced_projection_is_used() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model, x = block(), torch.randn(1, 9, 32)
    model.mixer.out_proj = Adapted(64, 32)
    with torch.no_grad():
        assert modules_called(model, x)


@needs_kernel
def test_what_a_subclass_or_a_patch_changes_is_kept() -> None:
    class Doubled(VimMixer):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Silent(Block):
        def branch(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    model, x = block(), torch.randn(1, 9, 32)
    with torch.no_grad():
        doubled = Block(model.norm, Doubled(32, states=4)).eval()
        doubled.mixer.load_state_dict(model.mixer.state_dict())
        assert torch.allclose(doubled(x) - x, 2 * (model(x) - x), atol=1e-5)
        assert torch.equal(Silent(model.norm, model.mixer).eval()(x), x)
        model.mixer.out_proj.bias = nn.Parameter(torch.ones(32))
        assert modules_called(model, x)
        model.mixer.out_proj.bias = None
        assert not modules_called(model, x)
        plain = model.mixer.in_proj.forward
        model.mixer.in_proj.forward = lambda x: 1 * plain(x)
        assert modules_called(model, x)


@needs_kernel
def test_global_hooks_see_the_modules() -> None:
    model, x = block(), torch.randn(1, 9, 32)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with torch.no_grad():
            assert modules_called(model, x)
    finally:
        handle.remove()


def test_stochastic_depth_turned_on_by_itself_drops_the_branch() -> None:
    torch.manual_seed(0)
    model = Block(make_norm("rms", 32), VimMixer(32, states=4), drop_path=0.999999).eval()
    model.drop_path.train()
    x = torch.randn(4, 9, 32)
    with torch.no_grad():
        assert torch.equal(model(x), x)


def test_stochastic_depth_drops_the_branch() -> None:
    torch.manual_seed(0)
    model = Block(make_norm("rms", 32), VimMixer(32, states=4), drop_path=0.999999).train()
    x = torch.randn(4, 9, 32)
    assert torch.equal(model(x), x)
    assert not torch.equal(model.eval()(x), x)


@needs_kernel
@pytest.mark.parametrize("where", ["mixer.conv_weight", "mixer.in_proj.weight", "mixer.ssm.A_log", "norm.weight"])
def test_a_weight_that_is_computed_is_left_to_the_modules(where: str) -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    model, x = block(), torch.randn(1, 9, 32)
    module, name = where.rsplit(".", 1)
    with torch.no_grad():
        expected = block()
        expected.get_submodule(module).get_parameter(name).div_(2)
        parametrize.register_parametrization(model.get_submodule(module), name, Halved())
        assert modules_called(model, x)
        assert torch.allclose(model(x), expected(x), rtol=1e-5, atol=1e-6)


@needs_kernel
def test_weights_put_elsewhere_or_changed_in_place_are_the_ones_used() -> None:
    model, x = block(), torch.randn(1, 9, 32)
    with torch.no_grad():
        before = model(x)
        for change in ("moved", "in place"):
            for weight in model.parameters():
                if change == "moved":
                    weight.data = weight * 1.1
                else:
                    weight.data.mul_(0.8)
            assert not modules_called(model, x)
            after = model(x)
            assert not torch.allclose(after, before, rtol=1e-3)
            assert torch.allclose(after, x + model.branch(x), rtol=1e-5, atol=1e-6)
            before = after


@needs_kernel
def test_a_column_in_one_call_is_its_blocks() -> None:
    blocks, x = nn.ModuleList(block() for _ in range(3)), torch.randn(2, 40, 32)
    with torch.no_grad():
        found = try_one_call(blocks, x)
        assert found is not None
        assert torch.equal(found, blocks[2](blocks[1](blocks[0](x))))
    assert try_one_call(blocks, x) is None  # gradients are enabled


@needs_kernel
@pytest.mark.parametrize(
    "change",
    [
        lambda last: last.mixer.register_forward_hook(lambda *_: None),
        lambda last: setattr(last, "drop_path", DropPath(0.5).train()),
        lambda last: setattr(last, "forward", lambda x: x),
        lambda last: setattr(last, "__class__", type("Other", (Block,), {})),
        lambda last: setattr(last.mixer.in_proj, "bias", nn.Parameter(torch.ones(128))),
        lambda last: last.mixer.in_proj.compile(backend="eager"),
        lambda last: setattr(last.norm, "eps", None),
        lambda last: (delattr(last.mixer, "gamma"), last.mixer.register_buffer("gamma", torch.full((32,), 3.0))),
    ],
)
def test_a_known_column_notices_who_looks_or_changes_a_block(change: Callable[[Block], object]) -> None:
    blocks, x = nn.ModuleList([block(), block()]), torch.randn(1, 9, 32)
    column = Column()
    with torch.no_grad():
        assert try_one_call(blocks, x, column) is not None
        change(blocks[1])  # type: ignore[arg-type]
        assert try_one_call(blocks, x, column) is None


@needs_kernel
@pytest.mark.parametrize(
    "change",
    [
        lambda blocks: setattr(blocks[1].mixer, "halve", False),
        lambda blocks: setattr(blocks[1].norm, "eps", 0.5),
        lambda blocks: setattr(blocks[1].mixer, "gamma", nn.Parameter(torch.full((32,), 3.0))),
        lambda blocks: setattr(blocks[1].mixer.out_proj, "weight", nn.Parameter(torch.randn(32, 64))),
        lambda blocks: setattr(blocks[1].mixer, "out_proj", nn.Linear(64, 32, bias=False)),
        lambda blocks: blocks.append(block()),
        lambda blocks: setattr(blocks, "_modules", {"0": blocks[0]}),
        lambda blocks: blocks.__setitem__(0, Block(make_norm("rms", 32), VimMixer(32, states=4)).eval()),
    ],
)
def test_a_known_column_runs_what_its_blocks_have_become(change: Callable[[nn.ModuleList], object]) -> None:
    blocks, x = nn.ModuleList([block(), block()]), torch.randn(1, 9, 32)
    column = Column()
    with torch.no_grad():
        before = try_one_call(blocks, x, column)
        change(blocks)
        for _ in range(2):
            found, expected = try_one_call(blocks, x, column), x
            for each in blocks:
                expected = each(expected)
            if found is not None:  # gamma in one of the blocks only
                assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
            assert before is not None and (found is None or not torch.equal(found, before))


@needs_kernel
def test_a_known_column_compares_what_has_no_truth_value() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError

        __hash__ = None  # type: ignore[assignment]

    blocks, x = nn.ModuleList([block(), block()]), torch.randn(1, 9, 32)
    column = Column()
    with torch.no_grad():
        before = try_one_call(blocks, x, column)
        for tag in (Odd(), Odd(), torch.ones(2), torch.ones(2)):
            blocks[1].tag = tag
            found = try_one_call(blocks, x, column)
            assert before is not None and found is not None
            assert torch.equal(found, before)
        attributes = dict(blocks[1].mixer.__dict__)
        blocks[1].mixer.__dict__ = attributes
        blocks[1].mixer.halve = False
        found = try_one_call(blocks, x, column)
        assert found is not None and not torch.equal(found, before)


@needs_kernel
def test_copies_and_pickles_of_a_model_know_nothing_of_it_and_run_their_own_blocks() -> None:
    model = timm.create_model("vim_nano", depth=2).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        assert model.column._known is not None
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert copied.column._known is None
            copied.blocks[0].mixer.out_proj.weight.mul_(2)
            found = copied(x)
            assert not torch.allclose(found, before, rtol=1e-3)
            assert torch.allclose(found, copied.requires_grad_()(x.requires_grad_()), rtol=1e-4, atol=1e-5)
        shallow = copy.copy(model)
        shallow._modules = {**model._modules, "blocks": nn.ModuleList([model.blocks[1], model.blocks[0]])}
        assert not torch.allclose(shallow(x), before, rtol=1e-3)
        assert torch.equal(model(x), before)


def test_a_model_and_its_column_are_forgotten_together() -> None:
    model = timm.create_model("vim_nano", depth=2).eval()
    kept = weakref.ref(model.blocks[0])
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    del model
    gc.collect()
    assert kept() is None


@needs_kernel
def test_a_column_stands_back_where_somebody_looks_or_has_changed_a_block() -> None:
    class Doubled(Block):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = torch.randn(1, 9, 32)

    def runs(change: object) -> bool:
        last = block()
        kept = change(last)  # type: ignore[operator]
        with torch.no_grad():
            done = try_one_call(nn.ModuleList([block(), kept if isinstance(kept, Block) else last]), x) is not None
        return done

    def dropping(last: Block) -> None:
        last.drop_path = DropPath(0.5).train()

    def mixing(last: Block) -> None:
        last.mixer = nn.Identity()

    assert runs(lambda last: last)
    assert runs(lambda last: setattr(last, "drop_path", DropPath(0.5).eval()))
    assert not runs(dropping)
    assert not runs(mixing)
    assert not runs(lambda last: Doubled(last.norm, last.mixer).eval())
    assert not runs(lambda last: setattr(last, "branch", lambda x: x))
    assert not runs(lambda last: setattr(last, "forward", lambda x: x))
    for inside in ("", "norm", "mixer", "drop_path", "mixer.ssm", "mixer.in_proj"):
        assert not runs(lambda last, at=inside: last.get_submodule(at).register_forward_hook(lambda *_: None))
