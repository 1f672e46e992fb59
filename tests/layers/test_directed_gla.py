"""The four orders: their walks, what they do to a kernel, and where two of them meet."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from vision_ssm.layers.directed_gla import ORDERS, DirectedGLA, Order

EACH = pytest.mark.parametrize("order", ORDERS, ids=["rows", "rows back", "columns", "columns back"])


def sequence(order, x):
    """The tokens of x [B, H, W, C] one after the other, turned over as published."""
    laid = (x.transpose(1, 2) if order.columns else x).flatten(1, 2)
    return laid.flip(1) if order.reverse else laid


@EACH
def test_a_walk_visits_the_tokens_in_that_order(order):
    places = torch.arange(15).view(1, 3, 5, 1)
    walk = order.walk(3, 5)
    assert [walk.token(step) for step in range(15)] == sequence(order, places).flatten().tolist()


@EACH
def test_a_turned_kernel_does_what_the_kernel_does_to_the_map_laid_out(order):
    kernel, x = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    shape = (5, 3) if order.columns else (3, 5)
    laid = sequence(order, x).mT.unflatten(2, shape)
    expected = F.conv2d(laid, kernel, padding=1, groups=4).permute(0, 2, 3, 1)
    found = F.conv2d(x.permute(0, 3, 1, 2), order.turned(kernel), padding=1, groups=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(sequence(order, found), expected.flatten(1, 2))


@pytest.mark.parametrize(
    ("one", "other"), [pair for pair in itertools.product(ORDERS, ORDERS) if pair[0][1] == pair[1][1]]
)
def test_two_orders_meet_step_by_step(one: Order, other: Order):
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(sequence(one, one.meeting(other, x)), sequence(other, x))
    square = torch.randn(2, 4, 4, 3)
    mirrored = square if one.columns == other.columns else square.transpose(1, 2)
    torch.testing.assert_close(one.meeting(other, square), mirrored)


@EACH
def test_the_mixer_is_the_recurrence_token_by_token(order):
    torch.manual_seed(0)
    mixer = DirectedGLA(8, head_dim=4, order=order).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    tokens = sequence(order, x)
    q, k, v, g = (layer(tokens) for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj))
    decay = torch.sigmoid(mixer.gate_up(mixer.gate_down(tokens))) ** (1 / 16)
    q, k, v, decay = (part.unflatten(-1, (2, -1)) for part in (q, k, v, decay))
    state, outputs = torch.zeros(2, 2, 2, 4, dtype=torch.float64), []
    for t in range(12):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((state * q[:, t, :, :, None]).sum(2) / 2**0.5)
    o = torch.stack(outputs, 1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    expected = mixer.o_proj(o.flatten(2) * F.silu(g))
    torch.testing.assert_close(sequence(order, mixer(x)), expected)
