"""Rotary positions: against complex numbers, and inside Vim against the published (hidden, residual) form."""

from __future__ import annotations

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.layers.rotary import rotary_table, rotated
from vision_ssm.models.registry import create_model


def by_hand(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Every pair of channels as a complex number, turned by its angle."""
    turned = torch.empty_like(x)
    half = x.shape[-1] // 2
    for token in range(height * width):
        row, column = divmod(token, width)
        for pair in range(half):
            place = row / height if pair < half // 2 else column / width
            angle = torch.tensor(place * 14 * 10000 ** (-2 * (pair % (half // 2)) / half), dtype=torch.float64)
            number = torch.complex(x[..., token, 2 * pair], x[..., token, 2 * pair + 1]) * torch.exp(1j * angle)
            turned[..., token, 2 * pair], turned[..., token, 2 * pair + 1] = number.real, number.imag
    return turned


def test_tokens_are_turned_by_their_places() -> None:
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    torch.testing.assert_close(rotated(x, rotary_table((3, 5), 16, x)), by_hand(x, 3, 5))


def test_a_rotary_vim_turns_hidden_and_residual_before_every_block() -> None:
    torch.manual_seed(0)
    model = create_model("vim_nano", class_token="none", rotary=True, depth=3, embed_dim=16).double().eval()
    images = torch.randn(1, 3, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        found = model.forward_features(images)
        hidden, residual = model._embed(images)[0], None
        for block in model.blocks:
            hidden = by_hand(hidden, 6, 4)
            residual = hidden if residual is None else hidden + by_hand(residual, 6, 4)
            hidden = block.mixer(block.norm(residual))
        torch.testing.assert_close(found, model.norm(hidden + residual))
        taps = model.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        torch.testing.assert_close(model.norm(taps[1].flatten(2).transpose(1, 2)), found)
    plain = create_model("vim_nano", class_token="none", depth=3, embed_dim=16).double().eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain.forward_features(images), found)


def test_recomputing_gives_the_same_gradients() -> None:
    model = create_model("vim_nano", class_token="none", rotary=True, depth=2, embed_dim=16)
    images, grads = torch.randn(1, 3, 16, 16), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).sum().backward()
        grads.append(model.pos_embed.grad.clone())
    torch.testing.assert_close(*grads)
    assert bool(grads[0].any())


def test_it_needs_patches_alone() -> None:
    with pytest.raises(ConfigError, match="needs class_token='none'"):
        create_model("vim_nano", rotary=True)
