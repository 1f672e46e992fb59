"""The recurrences of `vision_ssm.exporting.operators` as nodes of ONNX.

A scan is one ``Scan`` over time, all directions side by side, with the exponential inside its body, so that nothing of
size T x C x N is ever in memory. The states lie as [B, K, N, C], channels innermost: every operation of the body then
runs along them, and C · h is a product of a row with a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18
from torch.onnx._internal.exporter._torchlib.ops.hop import call_op  # onnxscript itself has no Scan of a typed body

from vision_ssm.weights.runtimes import MICROSOFT

__all__ = ["translations"]

op: Any = opset18  # its types are those of numpy-like evaluation, and here nothing is evaluated

_numbers = count()


def translations(target: str) -> dict[str, Callable[..., Any]]:
    """Return the nodes of each recurrence, by the name of its operator.

    Args:
        target: 'onnxruntime', with ONNX Runtime's own operator for gated linear attention, 'portable', standard
            operators only, or 'openvino', these in a form that OpenVINO computes right.
    """
    return {
        "scan_steps": scan_steps_for_openvino if target == "openvino" else scan_steps,
        "gla_steps": linear_attention if target == "onnxruntime" else gla_steps,
    }


def scan_steps(delta: Any, added: Any, A: Any, B: Any, C: Any) -> Any:
    """Return y [T, B, K, C]: see `vision_ssm.exporting.operators`."""
    return _scan_steps((delta, added, B, C), A, delta.shape[1], tuple(A.shape))


def scan_steps_for_openvino(delta: Any, added: Any, A: Any, B: Any, C: Any) -> Any:
    """Return y [T, B, K, C]; a single state per channel is given a second one beside it, which stays zero.

    Of fixed sizes OpenVINO 2026.4 computes a ``Scan`` of one state wrongly, by as much as the values themselves.
    """
    directions, states, channels = A.shape
    if states == 1:
        A = op.Pad(A, op.Constant(value_ints=[0, 0, 0, 0, 1, 0]))
        B, C = (op.Pad(x, op.Constant(value_ints=[0, 0, 0, 0, 0, 0, 0, 1])) for x in (B, C))
    return _scan_steps((delta, added, B, C), A, delta.shape[1], (directions, max(states, 2), channels))


def _scan_steps(of_time: Sequence[Any], A: Any, batch: Any, sizes: tuple[int, int, int]) -> Any:
    directions, states, channels = sizes
    body = _Body(f"scan_{next(_numbers)}")
    h = body.input("h", (batch, directions, states, channels))
    widths = (channels, channels, states, states)
    d, du, b, c = (body.input(name, (batch, directions, width)) for name, width in zip("dubc", widths, strict=True))
    row, column = body.constant([-2]), body.constant([-1])
    decay = body.node("Exp", body.node("Mul", body.node("Unsqueeze", d, row), A))
    new = body.node("Mul", body.node("Unsqueeze", b, column), body.node("Unsqueeze", du, row))
    state = body.node("Add", body.node("Mul", decay, h), new, shape=h.shape)
    y = body.node("MatMul", body.node("Unsqueeze", c, row), state)
    y = body.node("Squeeze", y, row, shape=d.shape)
    nothing = _zeros(op.Shape(of_time[0], start=1, end=2), sizes)
    return _scan(body.graph(state, y), nothing, of_time)


def gla_steps(q: Any, k: Any, v: Any, log_gates: Any, heads: int, scale: float) -> Any:
    """Return o [B, T, H V] by a ``Scan`` with the state [B, H, N, V]."""
    batch = q.shape[0]
    keys, values = q.shape[2] // heads, v.shape[2] // heads

    def split(x: Any, width: int) -> Any:
        return op.Transpose(op.Reshape(x, op.Constant(value_ints=[0, 0, heads, width])), perm=[1, 0, 2, 3])

    of_time = (split(q, keys), split(k, keys), split(v, values), split(log_gates, keys))
    body = _Body(f"gla_{next(_numbers)}")
    state = body.input("S", (batch, heads, keys, values))
    shapes = [(batch, heads, width) for width in (keys, keys, values, keys)]
    of_q, of_k, of_v, gates = (body.input(name, shape) for name, shape in zip("qkvg", shapes, strict=True))
    row, column = body.constant([-2]), body.constant([-1])
    kept = body.node("Mul", body.node("Unsqueeze", body.node("Exp", gates), column), state)
    new = body.node("Mul", body.node("Unsqueeze", of_k, column), body.node("Unsqueeze", of_v, row))
    after = body.node("Add", kept, new, shape=state.shape)
    o = body.node("Squeeze", body.node("MatMul", body.node("Unsqueeze", of_q, row), after), row, shape=of_v.shape)
    nothing = _zeros(op.Shape(q, start=0, end=1), (heads, keys, values))
    by_head = op.Transpose(_scan(body.graph(after, o), nothing, of_time), perm=[1, 0, 2, 3])
    together = op.Reshape(by_head, op.Constant(value_ints=[0, 0, heads * values]))
    return op.Mul(together, op.Constant(value_float=scale))


def linear_attention(q: Any, k: Any, v: Any, log_gates: Any, heads: int, scale: float) -> Any:
    """Return o [B, T, H V] by ONNX Runtime's own operator."""
    form: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads, "scale": scale, "update_rule": "gated"}
    o, _ = call_op("LinearAttention", q, k, v, None, log_gates, _num_outputs=2, _domain=MICROSOFT, **form)
    o.shape, o.type = v.shape, v.type
    return o


def _scan(body: ir.Graph, nothing: Any, of_time: Sequence[Any]) -> Any:
    _, y = call_op("Scan", nothing, *of_time, _num_outputs=2, body=body, num_scan_inputs=len(of_time))
    return y


def _zeros(batch: Any, rest: Sequence[int]) -> Any:
    """Return zeros [B, ...]."""
    shape = op.Concat(batch, op.Constant(value_ints=list(rest)), axis=0)
    return op.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, np.float32)))


class _Body:
    """The graph of one step. Inputs and outputs have types and shapes: OpenVINO reads no other."""

    def __init__(self, name: str) -> None:
        self._name, self._inputs, self._nodes = name, list[ir.Value](), list[ir.Node]()

    def input(self, name: str, shape: Sequence[Any]) -> ir.Value:
        value = ir.Value(name=f"{self._name}_{name}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self._inputs.append(value)
        return value

    def constant(self, numbers: Sequence[int]) -> ir.Value:
        tensor = ir.tensor(np.array(numbers, np.int64))
        return self._added(ir.node("Constant", [], {"value": tensor}))

    def node(self, kind: str, *inputs: Any, shape: Any = None) -> ir.Value:
        output = self._added(ir.node(kind, inputs))
        if shape is not None:
            output.shape, output.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return output

    def graph(self, *outputs: ir.Value) -> ir.Graph:
        return ir.Graph(self._inputs, outputs, nodes=self._nodes, name=self._name)

    def _added(self, node: ir.Node) -> ir.Value:
        output = node.outputs[0]
        output.name = f"{self._name}_{len(self._nodes)}"
        self._nodes.append(node)
        return output
