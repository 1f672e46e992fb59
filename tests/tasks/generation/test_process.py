"""The process and the loss are the equations, worked out here by themselves in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vision_ssm.tasks.generation.process import Losses, hybrid_loss, process
from vision_ssm.tasks.generation.settings import NoiseSchedule


def alphas() -> tuple[Tensor, Tensor]:
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return beta, (1 - beta).cumprod(0)


def noised(t: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(len(t), 3, 4, 4, generator=draw).clamp(-1, 1)
    noise = torch.randn(x.shape, generator=draw)
    at = process().at(t)
    return x, at.signal * x + at.noise * noise, noise


def losses(t: Tensor, error: float, v: float) -> Losses:
    x, noisy, noise = noised(t)
    output = torch.cat([noise + error, torch.full_like(noise, v)], 1)
    return hybrid_loss(output, x, noisy, noise, process().at(t))


@pytest.mark.parametrize(("schedule", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_the_process_is_that_of_diffusers(schedule: NoiseSchedule, name: str) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=name).alphas_cumprod
    torch.testing.assert_close(process(schedule).signal.square(), theirs, rtol=3e-4, atol=1e-9)


def test_the_cosine_is_that_of_the_paper() -> None:
    t = torch.arange(1, 990, dtype=torch.float64)  # the last steps are cut off
    f = [torch.cos((at / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for at in (t, torch.zeros(()).double())]
    torch.testing.assert_close(process("cosine").signal[:989].double().square(), f[0] / f[1], rtol=1e-5, atol=0)


def test_the_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) from the product of two normal densities, not from the closed form."""
    beta, product = alphas()
    for t in (1, 2, 500, 999):
        before, alpha, own = product[t - 1], 1 - beta[t], [values[t].item() for values in process()[2:]]
        precision = alpha / beta[t] + 1 / (1 - before)
        wanted = [before.sqrt() / (1 - before) / precision, alpha.sqrt() / beta[t] / precision]
        assert own[:2] == pytest.approx([float(each) for each in wanted], rel=1e-4)
        assert own[3] == pytest.approx(-math.log(precision), abs=1e-4)


def test_a_denoiser_that_knows_everything_has_no_loss() -> None:
    found = losses(torch.tensor([1, 10, 500, 999]), error=0.0, v=-1.0)  # v = -1: the variance is the posterior's
    assert found.noise.abs().max() == 0
    assert found.bound is not None
    assert found.bound.abs().max() < 1e-5


@pytest.mark.parametrize(("error", "v"), [(0.3, -1.0), (0.0, 1.0), (0.2, 0.4)])
def test_the_bound_is_the_divergence_in_bits(error: float, v: float) -> None:
    t = torch.tensor([1, 3, 40, 999])
    found = losses(t, error, v)
    beta, product = alphas()
    before = product[t - 1]
    posterior = (1 - before) / (1 - product[t]) * beta[t]
    variance = (v + 1) / 2 * beta[t].log() + (1 - (v + 1) / 2) * posterior.log()
    # An error of the noise moves the mean by beta / sqrt(alpha (1 - product)) times itself (DDPM, equation 11).
    moved = error * beta[t] / ((1 - beta[t]).sqrt() * (1 - product[t]).sqrt())
    q, p = (torch.distributions.Normal(mean, scale) for mean, scale in
            ((torch.zeros(4).double(), posterior.sqrt()), (moved, (variance / 2).exp())))  # fmt: skip
    wanted = torch.distributions.kl_divergence(q, p) / math.log(2)
    assert found.bound is not None
    torch.testing.assert_close(found.bound.double(), wanted, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(found.noise.double(), torch.full((4,), error**2).double(), rtol=1e-4, atol=1e-7)


def test_the_levels_of_the_first_step_are_shares_of_one() -> None:
    """At t = 0 the 256 levels of a number have probabilities that sum to 1."""
    levels = (torch.arange(256) / 127.5 - 1).view(-1, 1, 1, 1)
    t = torch.zeros(256, dtype=torch.int64)
    noisy, noise = torch.full_like(levels, 0.3), torch.zeros_like(levels)
    output = torch.cat([torch.full_like(levels, 1.0), torch.full_like(levels, 0.5)], 1)
    bound = hybrid_loss(output, levels, noisy, noise, process().at(t)).bound
    assert bound is not None
    shares = (-bound * math.log(2)).exp()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-4)
    middle = float((0.3 - process().noise[0]) / process().signal[0])
    assert abs(float(levels[shares.argmax()]) - middle) < 1 / 127.5


def test_the_bound_teaches_the_variance_alone() -> None:
    t = torch.tensor([0, 5, 700])
    x, noisy, noise = noised(t)
    output = torch.cat([noise + 0.1, torch.zeros_like(noise)], 1).requires_grad_()
    bound = hybrid_loss(output, x, noisy, noise, process().at(t)).bound
    assert bound is not None
    bound.sum().backward()
    assert output.grad is not None
    assert output.grad[:, :3].abs().max() == 0
    assert bool((output.grad[:, 3:].abs().flatten(1).amax(1) > 0).all())


def test_without_a_variance_there_is_no_bound() -> None:
    t = torch.tensor([4])
    x, noisy, noise = noised(t)
    assert hybrid_loss(noise, x, noisy, noise, process().at(t)).bound is None
