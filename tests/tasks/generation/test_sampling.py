"""Samplers and guidance, against the published sampler worked out here by itself, and against a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tasks.generation.toys import Oracle
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.generation.sampling import guided, sample_steps, starting_noise, take_noise_away
from vision_ssm.tasks.generation.settings import GenerationOptions, NoiseSchedule


def vague(x: Tensor, t: Tensor) -> Tensor:
    """Some smooth function with noise and variance."""
    return torch.cat([0.9 * x + 0.001 * t.view(-1, 1, 1, 1), torch.tanh(x.flip(3))], 1)


def products(schedule: NoiseSchedule) -> Tensor:
    if schedule == "linear":
        return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    kept = torch.cos((torch.linspace(0, 1, 1001, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (kept[1:] / kept[:-1]).clamp(min=0.001).cumprod(0)


def published(count: int, x: Tensor, draws: torch.Generator, schedule: NoiseSchedule, *, clip: bool) -> Tensor:
    """DDPM over a subset of the steps: their betas are made anew, as the official code spaces its process."""
    steps = [round(at) for at in np.linspace(0, 999, count).tolist()]
    product = products(schedule)[steps]
    before = torch.cat([torch.ones(1).double(), product[:-1]])
    beta = 1 - product / before
    x = x.double()
    for i in reversed(range(count)):
        noise, v = vague(x, torch.full((len(x),), steps[i])).chunk(2, 1)
        start = (x - (1 - product[i]).sqrt() * noise) / product[i].sqrt()
        start = start.clamp(-1, 1) if clip else start
        mean = (before[i].sqrt() * beta[i] * start + (1 - beta[i]).sqrt() * (1 - before[i]) * x) / (1 - product[i])
        if i == 0:
            return mean
        smallest = (1 - before[i]) / (1 - product[i]) * beta[i]
        log_variance = (v + 1) / 2 * beta[i].log() + (1 - (v + 1) / 2) * smallest.log()
        x = mean + (log_variance / 2).exp() * torch.randn((1, *x.shape[1:]), generator=draws).double()
    raise AssertionError("no step 0")


@pytest.mark.parametrize("count", [2, 7, 250, 1000])
def test_steps_run_from_the_noisiest_to_the_image(count: int) -> None:
    steps = sample_steps(count)
    assert (steps[0], steps[-1], len(set(steps))) == (999, 0, count)
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(("schedule", "clip"), [("linear", False), ("linear", True), ("cosine", True)])
@pytest.mark.parametrize("count", [4, 27])
def test_ddpm_is_the_published_sampler(count: int, schedule: NoiseSchedule, clip: bool) -> None:
    noise, generators = starting_noise([3], (2, 4, 4))
    options = GenerationOptions(steps=count, sampler="ddpm")
    found = take_noise_away(vague, noise, generators, options, schedule=schedule, learned=True, clip=clip)
    again, (draws,) = starting_noise([3], (2, 4, 4))
    wanted = published(count, again, draws, schedule, clip=clip)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [2, 13])
def test_a_denoiser_that_knows_the_image_is_led_to_it(sampler: str, steps: int) -> None:
    labels = torch.tensor([0, 1, 1])
    noise, generators = starting_noise([0, 1, 2], (3, 4, 4))
    options = GenerationOptions(steps=steps, sampler=sampler)
    denoiser = guided(Oracle(), labels, options)
    found = take_noise_away(denoiser, noise, generators, options, schedule="linear", learned=True, clip=True).detach()
    torch.testing.assert_close(
        found, torch.tensor([-0.5, 0.5, 0.5]).view(3, 1, 1, 1).expand_as(found), atol=1e-3, rtol=0
    )


def test_ddim_goes_where_the_equation_says() -> None:
    noise, generators = starting_noise([5], (3, 2, 2))
    options = GenerationOptions(steps=3, sampler="ddim")
    found = take_noise_away(vague, noise, generators, options, schedule="linear", learned=True, clip=False)
    product = products("linear")
    x = noise.double()
    for t, after in ((999, 500), (500, 0), (0, None)):  # 499.5 is rounded to the even number
        predicted = vague(x, torch.tensor([t]))[:, :3]
        start = (x - (1 - product[t]).sqrt() * predicted) / product[t].sqrt()
        x = start if after is None else product[after].sqrt() * start + (1 - product[after]).sqrt() * predicted
    torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-3)


def test_an_image_depends_on_its_own_seed_alone() -> None:
    options = GenerationOptions(steps=5)

    def made(seeds: list[int]) -> Tensor:
        noise, generators = starting_noise(seeds, (3, 4, 4))
        return take_noise_away(vague, noise, generators, options, schedule="linear", learned=True, clip=True)

    together = made([7, 8, 9])
    assert torch.equal(together[1:2], made([8]))
    assert not torch.equal(together[0], together[1])


def test_guidance_leaves_channels_beyond_the_third() -> None:
    model, x, t, y = Oracle(channels=4), torch.randn(2, 4, 4, 4), torch.tensor([500, 3]), torch.tensor([0, 1])
    with torch.no_grad():
        plain, nothing = model(x, t, y), model(x, t, torch.tensor([2, 2]))
        both = nothing + 3 * (plain - nothing)
        model.calls = 0
        some = guided(model, y, GenerationOptions(guidance=3.0))(x, t)
        assert model.calls == 1
        every = guided(model, y, GenerationOptions(guidance=3.0, guide_all=True))(x, t)
        torch.testing.assert_close(some, torch.cat([both[:, :3], plain[:, 3:]], 1))
        torch.testing.assert_close(every, torch.cat([both[:, :4], plain[:, 4:]], 1))
        assert torch.equal(guided(model, y, GenerationOptions(guidance=1.0))(x, t), plain)
        assert torch.equal(guided(model, y, GenerationOptions(guidance=0.0))(x, t), nothing)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 1001}, r"steps must be at least 2 and at most 1000, got 1001"),
        ({"steps": 1}, r"steps must be at least 2 and at most 1000, got 1"),
        ({"guidance": -0.5}, r"guidance must be at least 0, got -0\.5"),
        ({"sampler": "dddim"}, r"sampler must be one of ddpm, ddim, got 'dddim'\. Did you mean 'ddim'"),
    ],
)
def test_what_cannot_be_asked_for(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**wrong)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    noise, generators = starting_noise([0], (3, 4, 4))
    how = {"schedule": "linear", "learned": True, "clip": True}
    with pytest.raises(ConfigError, match=r"pip install 'vision-ssm\[generation\]', or choose ddim"):
        take_noise_away(vague, noise, generators, GenerationOptions(), **how)
    take_noise_away(vague, noise, generators, GenerationOptions(sampler="ddim", steps=2), **how)
