"""Both sides of the C interface: structures that ctypes mirrors, and constants."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vision_ssm.ops
from vision_ssm.errors import BackendError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.native import (
    BEST,
    DTYPES,
    INSTRUCTION_SETS,
    LIBRARY,
    MISSING,
    KernelCall,
    TensorArgument,
    disagreement,
    mirrors,
)
from vision_ssm.ops.scan.contract import CHUNK
from vision_ssm.ops.traversal import Cover

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(MISSING))

Fields = list[tuple[str, type]]


def registered() -> dict[str, type[ctypes.Structure]]:
    """Every structure of every file in `ops`; backends are loaded late, so each file is asked for."""
    root = Path(vision_ssm.ops.__path__[0])
    for path in root.rglob("*.py"):
        if "ctypes.Structure" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(["vision_ssm.ops", *path.relative_to(root).with_suffix("").parts]))
    return {structure: mirror for mirror, structure in native._MIRRORS.items()}


MIRRORS = registered()
CONV: Fields = [
    *((name, ctypes.c_int64) for name in ("batch", "directions", "tokens", "channels", "taps", "groups")),
    *((name, ctypes.c_int32) for name in ("threads", "isa", "activation")),
    ("reverse", ctypes.POINTER(ctypes.c_int32)),
    *((name, ctypes.c_void_p) for name in ("weight", "bias")),
    *((name, TensorArgument) for name in ("x", "y", "grad", "dx")),
    ("dparameters", ctypes.c_void_p),
]


def mirror_of(structure: str, fields: Fields) -> type[ctypes.Structure]:
    return mirrors(structure)(type("Mirror", (ctypes.Structure,), {"_fields_": fields}))


@pytest.mark.parametrize("mirror", MIRRORS.values(), ids=MIRRORS)
def test_every_mirror_agrees(mirror: type[ctypes.Structure]) -> None:
    assert disagreement(mirror) is None


def test_the_fields_of_c_are_accepted() -> None:
    assert disagreement(mirror_of("vssm_conv", CONV)) is None


def swapped(fields: Fields) -> Fields:
    weight, bias = 10, 11
    assert fields[weight][0] == "weight"
    return [*fields[:weight], fields[bias], fields[weight], *fields[bias + 1 :]]


def widened(fields: Fields) -> Fields:
    return [(name, ctypes.c_int64 if name == "activation" else kind) for name, kind in fields]


def padded(fields: Fields) -> Fields:
    """A field of which the size of the structure tells nothing: there was padding."""
    return [*fields[:9], ("more", ctypes.c_int32), *fields[9:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, r"vssm_conv has weight@72\+8 where bias@72\+8 is expected"),
        (widened, r"vssm_conv has activation@56\+4 where activation@56\+8 is expected"),
        (padded, r"vssm_conv has reverse@64\+8 where more@60\+4 is expected"),
        (lambda fields: fields[:-1], r"vssm_conv has dparameters@248\+8 where no field is expected"),
        (lambda fields: [*fields, ("more", ctypes.c_int64)], r"vssm_conv has no field where more@256\+8 is expected"),
    ],
)
def test_another_layout_is_refused_before_the_kernel_runs(change: Callable[[Fields], Fields], message: str) -> None:
    with pytest.raises(BackendError, match=f"of another version of vision-ssm .{message}.: reinstall"):
        KernelCall(mirror_of("vssm_conv", change(CONV))()).run("vssm_conv_forward")


def backwards(structure: str) -> type[ctypes.Structure]:
    """As large as it should be, but its fields are in another order."""
    return mirror_of(structure, list(reversed(MIRRORS[structure]._fields_)))


@pytest.mark.parametrize(
    ("structure", "name", "held", "kind"),
    [
        ("vssm_conv", "x", "vssm_tensor", lambda tensor: tensor),
        ("vssm_scan", "walks", "vssm_walk", ctypes.POINTER),
        ("vssm_vim_blocks", "branches", "vssm_vim_block", lambda block: ctypes.POINTER(ctypes.POINTER(block))),
    ],
)
def test_what_a_structure_holds_or_points_to_is_checked(
    structure: str, name: str, held: str, kind: Callable[[type], type]
) -> None:
    fields = MIRRORS[structure]._fields_
    assert name in [n for n, *_ in fields]
    inner = kind(backwards(held))
    fault = disagreement(mirror_of(structure, [(n, inner if n == name else k) for n, k in fields]))
    assert fault is not None and fault.startswith(f"{held} has ")


def test_a_structure_must_say_what_it_mirrors() -> None:
    nameless = type("Nameless", (ctypes.Structure,), {"_fields_": CONV})
    with pytest.raises(BackendError, match="Nameless does not say which structure it mirrors"):
        KernelCall(nameless()).run("vssm_conv_forward")
    with pytest.raises(BackendError, match="there is no vssm_unheard_of"):
        KernelCall(mirror_of("vssm_unheard_of", CONV)()).run("vssm_conv_forward")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VSSM_CHUNK", CHUNK),
        ("VSSM_MOST_TAPS", MOST_TAPS),
        ("VSSM_FLOAT32", DTYPES[torch.float32]),
        ("VSSM_BFLOAT16", DTYPES[torch.bfloat16]),
        ("VSSM_ISA_BEST", BEST),
        *((f"VSSM_ISA_{name.upper()}", number) for number, name in enumerate(INSTRUCTION_SETS)),
        *((f"VSSM_NORM_{name.upper()}", number) for number, name in enumerate(NORMS)),
        *((f"VSSM_COVER_{cover.name}", cover.value) for cover in Cover),
        ("VSSM_MISSING_ISA", native.MISSING_ISA),
        ("VSSM_NO_MEMORY", native.NO_MEMORY),
        ("VSSM_UNHEARD_OF", -(2**63)),
    ],
)
def test_constants_are_the_same_on_both_sides(name: str, value: int) -> None:
    assert LIBRARY is not None
    assert LIBRARY.vssm_constant(name.encode()) == value
