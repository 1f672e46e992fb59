"""Operators taken apart: walks as index arithmetic, and one recurrence, which is written out here."""

from __future__ import annotations

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.exporting import torch_files
from vision_ssm.exporting.operators import decompositions
from vision_ssm.ops import Traversal, gla, selective_scan
from vision_ssm.ops.traversal import flatten

H, W = 4, 6
THERE, BACK = Traversal.each_row(H, W), Traversal.each_row(H, W, reverse=True)
WALKS = {
    "one": [Traversal.sequence(H * W)],
    "both ways": [Traversal.sequence(H * W), Traversal.sequence(H * W, reverse=True)],
    "cross": [
        *(Traversal.rows(H, W), Traversal.columns(H, W)),
        *(Traversal.rows(H, W, reverse=True), Traversal.columns(H, W, reverse=True)),
    ],
    "quarters": [
        Traversal.subgrid(H, W, step=2, row=row, column=column, column_major=row == 1)
        for column in (0, 1)
        for row in (0, 1)
    ],
    "of unlike lengths": [Traversal.sequence(H * W), Traversal(0, 5, 1, 0, 5)],
    "each row, turned round": [THERE, BACK.written_as(THERE)],
    "each column": [Traversal.each_column(H, W, reverse=True)],
}


def scan_steps(delta, added, A, B, C):
    h, y = torch.zeros(*delta.shape[1:3], *A.shape[1:]), []
    for t in range(len(delta)):
        h = torch.exp(delta[t][:, :, None] * A) * h + B[t][..., None] * added[t][:, :, None]
        y.append((C[t][..., None] * h).sum(2))
    return torch.stack(y)


def gla_steps(q, k, v, log_gates, heads, scale):
    q, k, v, gates = (torch.unflatten(x, -1, (heads, -1)) for x in (q, k, v, log_gates))
    state, o = torch.zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        state = gates[:, t].exp()[..., None] * state + k[:, t][..., None] * v[:, t][:, :, None]
        o.append(scale * (q[:, t][..., None] * state).sum(2))
    return torch.stack(o, 1).flatten(-2)


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("merge", [True, False])
def test_a_scan_taken_apart_is_the_scan(name, merge):
    walks = WALKS[name]
    torch.manual_seed(0)
    K, L, C, N = len(walks), H * W, 3, 2
    u, z = torch.randn(2, 1, L, C), torch.randn(2, L, C) if merge else None
    delta, B, c = torch.randn(2, K, L, C), torch.randn(2, K, L, N), torch.randn(2, 1, L, N)
    A, D, bias = -torch.rand(K, C, N), torch.randn(K, C), torch.randn(K, C)
    expected = selective_scan(u, delta, A, B, c, D, z, bias, traversals=walks, merge=merge, backend="reference")
    apart = decompositions(scan_steps, gla_steps)[torch.ops.vision_ssm.selective_scan.default]
    found, _ = apart(u, delta, A, B, c, D, z, bias, flatten(walks), True, merge, False, "auto")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in WALKS if "each" not in name])
def test_attention_taken_apart_is_the_attention(name):
    walks = WALKS[name]
    torch.manual_seed(0)
    q, k, v = torch.randn(2, H * W, 8), torch.randn(2, H * W, 8), torch.randn(2, H * W, 12)
    gates = -torch.rand(2, len(walks), H * W, 8)
    expected = gla(q, k, v, gates, heads=2, traversals=walks, backend="reference")
    apart = decompositions(scan_steps, gla_steps)[torch.ops.vision_ssm.gla.default]
    torch.testing.assert_close(apart(q, k, v, gates, 2, 4**-0.5, flatten(walks), True, "auto"), expected)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_doubling_is_the_recurrence(length):
    torch.manual_seed(0)
    delta, added = torch.rand(length, 2, 3, 4), torch.randn(length, 2, 3, 4)
    B, C, A = torch.randn(length, 2, 3, 5), torch.randn(length, 2, 3, 5), -10 * torch.rand(3, 5, 4)
    torch.testing.assert_close(torch_files.scan_steps(delta, added, A, B, C), scan_steps(delta, added, A, B, C))
    q, k, v = torch.randn(2, length, 8), torch.randn(2, length, 8), torch.randn(2, length, 12)
    gates = -10 * torch.rand(2, length, 8)
    torch.testing.assert_close(
        torch_files.gla_steps(q, k, v, gates, 2, 0.5), gla_steps(q, k, v, gates, 2, 0.5), atol=1e-5, rtol=1e-4
    )


def test_walks_that_start_anew_at_different_steps_are_refused():
    apart = decompositions(scan_steps, gla_steps)[torch.ops.vision_ssm.selective_scan.default]
    x, walks = torch.randn(1, 1, H * W, 2), flatten([THERE, Traversal.sequence(H * W)])
    with pytest.raises(ConfigError, match="only where they do so together"):
        apart(x, x, -torch.rand(2, 2, 2), x, x, None, None, None, walks, True, True, False, "auto")


class Diagonals(torch.nn.Module):
    """Of the last two axes and of two others, on it, above and below."""

    def forward(self, x):
        return x.diagonal(dim1=2, dim2=3), x.diagonal(-1, 3, 1), x.diagonal(2, -3, -1), x.diagonal(0, 0, 2)


def test_diagonals_of_known_sides_are_picked_entry_by_entry():
    x, batch = torch.randn(3, 4, 2, 5), torch.export.Dim("batch", min=1, max=8)
    traced = torch.export.export(Diagonals(), (x,), dynamic_shapes=({0: batch},))
    apart = traced.run_decompositions(decompositions(scan_steps, gla_steps))
    assert [node.target for node in apart.graph.nodes].count(torch.ops.aten.diagonal.default) == 1  # of the open side
    for part, whole in zip(apart.module()(x[:2]), Diagonals()(x[:2]), strict=True):
        assert torch.equal(part, whole)
