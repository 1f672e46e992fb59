"""Speed of gated linear attention on the CPU: the C++ kernel beside plain-torch chunked forms, both directions.

    python benchmarks/gla.py --output results/gla_cpu.json
    python benchmarks/gla.py --threads 1 2 --tokens 196 1024

It needs the extra `export`, whose ONNX Runtime it compares with.

3 heads of 32 key and 64 value channels, one image, as in ViG-T. The plain-torch forms run under torch.no_grad():

    halves        the library's 'chunked' backend, with chunks of 32, 64 and 128 tokens; stable for every gate
    exp(b)exp(-b) the usual form with chunks of 16 and 32 tokens, both directions as one batch; right for gates near 1,
                  as here, and not in general
    onnxruntime   its LinearAttention node, one direction, beside one direction of the kernel
    scan          the Scan that `vision-ssm export --target portable` writes for one direction, beside the node that
                  `--target onnxruntime` writes, both in ONNX Runtime on one thread

Contenders of a row run in turn and the medians of the rounds are kept, so that a machine whose speed drifts treats them
alike. Every contender is checked against the float64 reference on a short sequence first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper
from results_file import provenance, write
from torch import Tensor

from vision_ssm.exporting import onnx_files
from vision_ssm.ops import Traversal, gla
from vision_ssm.ops.gla import chunked
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import OnnxRuntime

HEADS, KEYS, VALUES = 3, 32, 64


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k, v and log-gates whose gates have the spread of a network's first steps."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, tokens, HEADS * KEYS) for _ in range(2))
    gates = F.logsigmoid(torch.randn(1, 2, tokens, HEADS * KEYS)) / 16
    return q, k, torch.randn(1, tokens, HEADS * VALUES), gates


def walks(tokens: int) -> list[Traversal]:
    return [Traversal.sequence(tokens), Traversal.sequence(tokens, reverse=True)]


def operator(backend: str, chunk: int, *x: Tensor) -> Tensor:
    """The public function, its chunks of so many tokens where the backend has some."""
    chunked.CHUNK = chunk
    return gla(*x, heads=HEADS, traversals=walks(x[0].shape[1]), backend=backend)


def plain(chunk: int, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The usual chunked form: q exp(b) and k exp(-b), b summed from a chunk's start."""
    tokens = q.shape[1]

    def split(x: Tensor) -> Tensor:  # [2, H, J, T, C]
        both = x if x.dim() == 4 else torch.stack([x, x], 1)
        both = torch.stack([both[0, 0], both[0, 1].flip(0)])
        both = F.pad(both, (0, 0, 0, -tokens % chunk)).unflatten(-1, (HEADS, -1))
        return both.unflatten(1, (-1, chunk)).movedim(3, 1)

    q, k, v, g = split(q) * KEYS**-0.5, split(k), split(v), split(gates)
    b = g.cumsum(-2)
    q_in, k_in, total = q * b.exp(), k * (-b).exp(), b[..., -1, :].exp()
    added = ((k_in * total[..., None, :]).mT @ v).unbind(2)
    state, states = torch.zeros_like(added[0]), []
    for new, decay in zip(added, total.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(new, decay[..., None], state)
    o = (q_in @ k_in.mT).tril() @ v + q_in @ torch.stack(states, 2)
    o = o.movedim(1, 3).flatten(3).flatten(1, 2)[:, :tokens]
    return (o[0] + o[1].flip(0))[None]


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "cpu": partial(operator, "cpu", 64),
    **{f"halves, {chunk}": partial(operator, "chunked", chunk) for chunk in (32, 64, 128)},
    **{f"exp(b)exp(-b), {chunk}": partial(plain, chunk) for chunk in (16, 32)},
}


REST = 0.1
"""Seconds after which no thread spins any more."""


def onnx_node(threads: int) -> Callable[..., Tensor]:
    """ONNX Runtime's node for one direction, on so many threads."""
    form: dict[str, Any] = {"update_rule": "gated", "q_num_heads": HEADS, "kv_num_heads": HEADS}
    names = ["q", "k", "v", "log_gates"]
    node = helper.make_node(
        "LinearAttention", [*names[:3], "", "log_gates"], ["o", "s"], domain="com.microsoft", **form
    )
    shaped = partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=[1, None, None])
    graph = helper.make_graph([node], "gla", [shaped(name) for name in names], [shaped("o")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def run(*x: Tensor) -> Tensor:
        given = {name: each.numpy() for name, each in zip(names, x, strict=True)}
        return torch.from_numpy(session.run(["o"], given)[0])

    return run


def one_direction(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The kernel over the forward walk alone."""
    walk = [Traversal.sequence(q.shape[1])]
    return gla(q, k, v, gates[:, None], heads=HEADS, traversals=walk, backend="cpu")


def beside_onnx(tokens: int, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of one direction, by our kernel and by ONNX Runtime's node, which must agree.

    The threads of either spin for a while after a run, in the way of the other: a session ends with its turn, and every
    turn begins with a rest.
    """
    q, k, v, gates = inputs(tokens)
    x = (q, k, v, gates[:, 0].contiguous())
    contenders = {"cpu": lambda: one_direction, "onnxruntime": lambda: onnx_node(threads)}
    torch.testing.assert_close(onnx_node(threads)(*x), one_direction(*x), rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, opened in contenders.items():
            run = opened()
            time.sleep(REST)
            with torch.no_grad():
                timed(partial(run, *x))
                seconds[name].append(timed(partial(run, *x)))
            del run
    return {name: statistics.median(values) for name, values in seconds.items()}


class OneDirection(torch.nn.Module):
    """Gated linear attention of q, k, v and log-gates that lie side by side, as it is exported."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        q, k, v, gates = x.split([HEADS * KEYS, HEADS * KEYS, HEADS * VALUES, HEADS * KEYS], dim=-1)
        walk = [Traversal.sequence(x.shape[1])]
        return (gla(q, k, v, gates[:, None], heads=HEADS, traversals=walk),)


def node_and_scan(tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of one direction on one thread of ONNX Runtime, by the file of either target; they must agree."""
    torch.set_num_threads(1)
    q, k, v, gates = inputs(tokens)
    x = torch.cat([q, k, v, gates[:, 0]], dim=-1)
    form, contenders = Form(OneDirection(), ("o",)), dict[str, OnnxRuntime]()
    with tempfile.TemporaryDirectory() as folder:
        for name, target in (("node", "onnxruntime"), ("scan", "portable")):
            path = Path(folder) / f"{name}.onnx"
            onnx_files.write(path, form, x, dynamic=(), step=1, target=target)
            contenders[name] = OnnxRuntime(path)
    for run in contenders.values():
        torch.testing.assert_close(run(x)[0], form.module(x)[0], rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(partial(run, x)))
    return {name: statistics.median(values) for name, values in seconds.items()}


def check() -> None:
    """Refuse to time what is wrong."""
    x = inputs(100)
    exact = operator("reference", 64, *(each.double() for each in x))
    for name, run in CONTENDERS.items():
        error = float((run(*x).double() - exact).norm() / exact.norm())
        if error > 1e-5:
            raise SystemExit(f"{name} is off by {error:.1e}: fix it before timing it")


def timed(run: Callable[[], Any], least: float = 0.03) -> float:
    """Seconds per call, over calls that take at least ``least`` seconds together."""
    started = time.perf_counter()
    run()
    calls = max(1, round(least / (time.perf_counter() - started)))
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def gradients(run: Callable[..., Tensor], x: tuple[Tensor, ...]) -> Callable[[], Any]:
    """A forward and a backward pass."""
    leaves = [each.clone().requires_grad_() for each in x]

    def step() -> Any:
        y = run(*leaves)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return step


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=[196, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    check()
    rows, inside = [], []
    for tokens in options.tokens:
        seconds_inside = node_and_scan(tokens, options.rounds)
        inside.append({"tokens": tokens, "threads": 1, "seconds": seconds_inside})
        print(
            f"{tokens:5} tokens, 1 thread, one direction in ONNX Runtime: "
            + ", ".join(f"{name} {1e3 * spent:.3f} ms" for name, spent in seconds_inside.items())
            + f", {seconds_inside['scan'] / seconds_inside['node']:.1f} times",
            flush=True,
        )
        x = inputs(tokens)
        for threads in options.threads:
            torch.set_num_threads(threads)
            seconds: dict[str, list[float]] = {f"{way}, {n}": [] for n in CONTENDERS for way in ("forward", "training")}
            for _ in range(options.rounds):
                for name, run in CONTENDERS.items():
                    with torch.no_grad():
                        seconds[f"forward, {name}"].append(timed(partial(run, *x)))
                    seconds[f"training, {name}"].append(timed(gradients(run, x)))
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            one = beside_onnx(tokens, threads, options.rounds)
            rows.append({"tokens": tokens, "threads": threads, "seconds": medians, "one direction": one})
            for way in ("forward", "training"):
                best = min((s, n) for n, s in medians.items() if n.startswith(way) and not n.endswith("cpu"))
                own = medians[f"{way}, cpu"]
                print(
                    f"{tokens:5} tokens, {threads} threads, {way:8}: cpu {own * 1e3:7.3f} ms, "
                    f"best plain torch {best[0] * 1e3:7.3f} ms ({best[1]}), {best[0] / own:.1f} times",
                    flush=True,
                )
            print(
                f"{tokens:5} tokens, {threads} threads, one direction: cpu {one['cpu'] * 1e3:.3f} ms, "
                f"ONNX Runtime {one['onnxruntime'] * 1e3:.3f} ms, {one['onnxruntime'] / one['cpu']:.2f} times",
                flush=True,
            )
    if options.output:
        write(
            options.output,
            provenance("python benchmarks/gla.py")
            | {"heads": HEADS, "keys": KEYS, "values": VALUES, "rows": rows, "in onnxruntime": inside},
        )


if __name__ == "__main__":
    main()
