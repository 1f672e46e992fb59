"""Compile every Triton kernel for a GPU that need not be there: python compile_triton.py cuda:90 bf16 [widest].

Prints the names of the kernels. Each is compiled as a call with every option has it, or with none and a single channel
and direction, which triton makes constants of; ``widest`` adds the widest heads of attention, which take half a minute.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vision_ssm.ops.add_norm import triton as triton_norm
from vision_ssm.ops.conv import triton as triton_conv
from vision_ssm.ops.gla import triton_kernels as triton_gla
from vision_ssm.ops.gla.triton import WIDEST
from vision_ssm.ops.scan import triton_backward, triton_forward, triton_parts

OPTIONS = ("z", "skip", "bias", "dz", "saved", "heads", "sums", "tails")
STATE = ("a", "weight", "skip", "bias", "saved", "heads", "sums", "ends", "tails", "parts", "scratch", "db", "dc", "da")
STREAM = ("stream", "grad_stream", "dweight")
GLA = ("gates", "states", "dq", "dk", "dv", "dgates")
INPUT = ("q", "key", "v", "x", "u", "delta", "b", "c", "z", "y", "grad", "dx", "du", "ddelta", "dz")
ADDED = ("added", "scale", "shift", "normalised", "dadded")


def compiled(
    kernel: Any,
    target: GPUTarget,
    dtype: str,
    constants: dict[str, Any],
    absent: Sequence[str] = (),
    warps: int = 1,
    wide: Sequence[str] = (),
) -> None:
    """Compile with the types of a call: pointers and strides aligned, last axes contiguous."""
    signature, values, aligned = {}, {}, {}
    for at, name in enumerate(inspect.signature(kernel.fn).parameters):
        if name in constants or name in absent or name.endswith(("_c", "_n")):
            signature[name], values[(at,)] = "constexpr", constants.get(name, None if name in absent else 1)
        elif name in ("eps", "factor"):
            signature[name] = "fp32"
        elif name in (*STATE, *STREAM, *GLA, *wide, "dskip", "dbias"):
            signature[name] = "*fp32"
        elif name in ("walks", "table"):
            signature[name] = "*i32"
        else:
            signature[name] = f"*{dtype}" if name in (*INPUT, *ADDED) else "i32"
        if signature[name].startswith("*") or name.endswith(("_b", "_k", "_l")):
            aligned[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
    print(kernel.fn.__name__, flush=True)


def main(where: str, dtype: str, *asked: str) -> None:
    """Compile all kernels for one device and dtype."""
    backend, _, arch = where.partition(":")
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    scan = {"STATES": 5, "PADDED": 8, "BLOCK": 32, "SOFTPLUS": True}
    bare = {"STATES": 1, "PADDED": 1, "BLOCK": 8, "SOFTPLUS": False, "channels": 1, "directions": 1}
    compiled(triton_parts.fill_walk, target, dtype, {})
    compiled(triton_forward.scan_segments, target, dtype, {**scan, "OUTPUT": True}, ["sums"])
    compiled(triton_forward.scan_segments, target, dtype, {**bare, "OUTPUT": False}, ["z", "skip", "bias", "saved"])
    link = {name: value for name, value in scan.items() if name != "SOFTPLUS"}
    compiled(triton_parts.link_segments, target, dtype, {**link, "REVERSE": True})
    compiled(triton_parts.sum_directions, target, dtype, {"ROWS": 8, "BLOCK": 128})
    block = {"BLOCK": triton_conv.BLOCK}
    both = {"K": 2, "TAPS": 4, "REVERSE": 0b10, "ACTIVATION": True, **block}
    least = {"K": 1, "TAPS": 1, "REVERSE": 0, "ACTIVATION": False, **block, "channels": 1}
    most = {"K": 2, "TAPS": 8, "REVERSE": 0b01, "ACTIVATION": True, **block}
    for constants in (both, least, most):
        compiled(triton_conv.conv_tiles, target, dtype, {**constants, "ROWS": triton_conv.ROWS}, warps=4)
        compiled(triton_conv.conv_adjoint, target, dtype, {**constants, "LINES": triton_conv.LINES}, warps=4)
    for channels, centred, absent in (
        (192, True, ()),
        (1, False, ("shift", "grad_stream", "dadded", "dweight", "dbias")),
    ):
        shape = triton_norm.launch_shape(channels)
        constants = {"ROWS": shape["ROWS"], "BLOCK": shape["BLOCK"], "CENTRED": centred}
        constants |= {"channels": 1, "x_l": 1, "added_l": 1, "grad_stream_l": 0, "grad_l": 1} if channels == 1 else {}
        for kernel in (triton_norm.add_norm_rows, triton_norm.add_norm_adjoint):
            taken = {n: c for n, c in constants.items() if n in inspect.signature(kernel.fn).parameters}
            compiled(kernel, target, dtype, taken, absent, shape["num_warps"])
    for keys, values in ((32, 64), (16, 16), *([(WIDEST, WIDEST)] if "widest" in asked else [])):
        blocks = {"BLOCK_N": keys, "BLOCK_V": values}
        for save in (False, True):
            of = {**blocks, "SAVE": save, "OUTPUT": not save}
            compiled(triton_gla.attend, target, dtype, of, warps=4, wide=("y",))
        compiled(triton_gla.attend_adjoint, target, dtype, blocks, warps=4)
    compiled(triton_backward.adjoint_ends, target, dtype, scan)
    compiled(triton_backward.scan_adjoint, target, dtype, scan)
    compiled(triton_backward.scan_adjoint, target, dtype, bare, [name for name in OPTIONS if name != "saved"])


if __name__ == "__main__":
    main(*sys.argv[1:])
