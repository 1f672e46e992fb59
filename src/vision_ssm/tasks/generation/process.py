"""The diffusion process, and the loss that a denoiser learns by.

    q(x_t | x_0)          = N(√ᾱ_t x_0, (1 − ᾱ_t) I)       ᾱ_t = Π_{s ≤ t} α_s,  α_t = 1 − β_t,  t = 0 … T − 1
    q(x_{t−1} | x_t, x_0) = N(μ̃_t(x_t, x_0), β̃_t I)        μ̃_t = (√ᾱ_{t−1} β_t x_0 + √α_t (1 − ᾱ_{t−1}) x_t) / (1 − ᾱ_t)
                                                           β̃_t = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t
    p(x_{t−1} | x_t)      = N(μ̃_t(x_t, x̂_0), σ²_t I)       x̂_0 = (x_t − √(1 − ᾱ_t) ε̂) / √ᾱ_t
                                                           log σ²_t = v log β_t + (1 − v) log β̃_t,  v = (v̂ + 1) / 2

    linear: β_t from 1e-4 to 0.02         cosine: ᾱ_t = f(t + 1) / f(0),  f(t) = cos²((t / T + s) / (1 + s) · π / 2)

    loss = |ε − ε̂|² + L_vb,                L_vb = KL(q ‖ p) for t > 0,  −log p(x_0 | x_1) for t = 0,  ε̂ held fixed in it

Sources: DDPM (arXiv:2006.11239, equations 4 to 14), improved DDPM (arXiv:2102.09672, equations 15 to 17); the numbers
and reductions are those of the published training of DiT and DiG, where the noise is linear and T is 1000: L_vb has the
factor T / 1000 there.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from vision_ssm.tasks.generation.settings import NOISE_STEPS, NoiseSchedule

__all__ = ["BETAS", "Losses", "Process", "hybrid_loss", "process", "split"]

BETAS = (1e-4, 0.02)
"""β of the first and the last step where it rises linearly."""

_OFFSET = 0.008  # s of the cosine
_MOST = 0.999  # β of the cosine's last steps

_BIN = 1 / 255  # half the distance of two levels of 8 bits in [-1, 1]
_SURE = 0.999  # beyond it a level is the last one, whose bin has no end


class Process(NamedTuple):
    """What depends on t alone, each [T] in float32.

    Attributes:
        signal: √ᾱ_t.
        noise: √(1 − ᾱ_t).
        from_start: factor of x_0 in μ̃_t.
        from_noisy: factor of x_t in μ̃_t.
        log_largest: log β_t.
        log_smallest: log β̃_t; that of step 0, where it is 0, is taken from step 1.
    """

    signal: Tensor
    noise: Tensor
    from_start: Tensor
    from_noisy: Tensor
    log_largest: Tensor
    log_smallest: Tensor

    def at(self, t: Tensor) -> Process:
        """Return each for steps t [B], as [B, 1, 1, 1] on the device of t."""
        return Process(*(values.to(t.device)[t].view(-1, 1, 1, 1) for values in self))


class Losses(NamedTuple):
    """Per image [B]: the squared error of the noise, and L_vb in bits per number; None without a learned variance."""

    noise: Tensor
    bound: Tensor | None


@functools.cache
def process(schedule: NoiseSchedule = "linear") -> Process:
    """Return the process of T = `NOISE_STEPS`, worked out in float64."""
    beta = torch.linspace(*BETAS, NOISE_STEPS, dtype=torch.float64) if schedule == "linear" else _cosine()
    alpha = 1 - beta
    product = alpha.cumprod(0)
    before = torch.cat([product.new_ones(1), product[:-1]])
    smallest = (1 - before) / (1 - product) * beta
    values = (
        product.sqrt(),
        (1 - product).sqrt(),
        before.sqrt() * beta / (1 - product),
        alpha.sqrt() * (1 - before) / (1 - product),
        beta.log(),
        torch.cat([smallest[1:2], smallest[1:]]).log(),
    )
    return Process(*(each.float() for each in values))


def _cosine() -> Tensor:
    times = torch.linspace(0, 1, NOISE_STEPS + 1, dtype=torch.float64)
    kept = torch.cos((times + _OFFSET) / (1 + _OFFSET) * math.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=_MOST)


def split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Return ε̂ and v̂ [B, C, H, W] of a model's output, v̂ None where it gives none. Both in float32."""
    output = output.float()
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None


def hybrid_loss(output: Tensor, x: Tensor, noisy: Tensor, noise: Tensor, at: Process) -> Losses:
    """Return the parts of the loss of each image.

    Args:
        output: of the model for x_t and t, [B, C or 2 C, H, W]: ε̂, then v̂.
        x: x_0 [B, C, H, W], pixels in [-1, 1] or latents.
        noisy: x_t.
        noise: ε.
        at: the process at each image's step, see `Process.at`.
    """
    predicted, v = split(output, x.shape[1])
    error = (noise - predicted).square().flatten(1).mean(1)
    if v is None:
        return Losses(error, None)
    start = (noisy - at.noise * predicted.detach()) / at.signal
    mean = at.from_start * start + at.from_noisy * noisy
    v = (v + 1) / 2
    log_variance = v * at.log_largest + (1 - v) * at.log_smallest
    true_mean = at.from_start * x + at.from_noisy * noisy
    divergence = _divergence(true_mean, at.log_smallest, mean, log_variance)
    first = -_log_likelihood(x, mean, log_variance)
    bound = torch.where(at.from_noisy == 0, first, divergence)  # only the last step to the image keeps nothing of x_t
    return Losses(error, bound.flatten(1).mean(1) / math.log(2))


def _divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N ‖ N′) in nats, element by element."""
    ratio = log_variance - other_log_variance
    return (ratio.exp() - 1 - ratio + (mean - other_mean).square() * (-other_log_variance).exp()) / 2


def _log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log p(x_0 | x_1) in nats: the normal distribution's share of the bin of each 8-bit level (DDPM, equation 13).

    The bins at both ends have no end. Latents, which have no levels, are treated alike, as published.
    """
    inverse = (-log_variance / 2).exp()
    below, above = _normal_cdf(inverse * (x - mean - _BIN)), _normal_cdf(inverse * (x - mean + _BIN))
    share = torch.where(x < -_SURE, above, torch.where(x > _SURE, 1 - below, above - below))
    return share.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The normal distribution's Φ by tanh, as in the published code, to 3e-4."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
