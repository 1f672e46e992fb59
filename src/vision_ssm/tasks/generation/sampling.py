"""From noise to images: what a denoiser says at each step, and the step that is made of it.

    ε̂ = ε̂(x_t, t, ∅) + s (ε̂(x_t, t, y) − ε̂(x_t, t, ∅))              classifier-free guidance (arXiv:2207.12598)
    ddpm: x_{t′} ~ N(μ̃(x_t, x̂_0), σ²)                                 `diffusers.DDPMScheduler`
    ddim: x_{t′} = √ᾱ_{t′} x̂_0 + √(1 − ᾱ_{t′}) ε̂                      (arXiv:2010.02502, equation 12 with σ = 0)

t runs over S of the T steps, evenly from T − 1 to 0, and t′ is the next of them; beyond the last one ᾱ is 1. Where x̂_0
is clipped, ddim takes the ε̂ that belongs to it.

The published code samples as diffusers' DDPM does with a learned range of variances and evenly spaced steps, so that is
used. Its DDIM is not: whatever the spacing, it takes t − T // S for t′, which of steps that run evenly from T − 1 to 0
(``linspace``), as these do, is not the one that comes next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.tasks.generation.process import BETAS, process, split
from vision_ssm.tasks.generation.settings import NOISE_STEPS, GenerationOptions, NoiseSchedule

__all__ = ["EXTRA", "guided", "sample_steps", "starting_noise", "take_noise_away"]

EXTRA = "pip install 'vision-ssm[generation]'"
"""What brings diffusers."""

GUIDED = 3
"""So many channels of the noise are guided; the official sampling leaves the others as they are."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""From x_t [B, C, H, W] and t [B] to ε̂ and v̂ [B, C or 2 C, H, W]."""


def starting_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> tuple[Tensor, list[torch.Generator]]:
    """Return noise [B, C, H, W] and the generators that go on, one for each image, all on the CPU.

    So an image depends on its own seed, and not on the device or on what is made beside it.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=each) for each in generators]), generators


def guided(model: nn.Module, labels: Tensor, options: GenerationOptions) -> Denoiser:
    """Return the denoiser for classes y [B], guided as the options say.

    Args:
        model: in evaluation mode; ``model(x, t, y)``, with ``num_classes`` as y where no class is given.
        labels: int64, on the model's device.
        options: ``guidance`` s, and whether ``guide_all`` channels are.
    """
    network: Any = model
    strength = options.guidance
    if strength == 1:
        return lambda x, t: network(x, t, labels)
    nothing = torch.full_like(labels, network.num_classes)
    if strength == 0:
        return lambda x, t: network(x, t, nothing)

    def both(x: Tensor, t: Tensor) -> Tensor:
        count = x.shape[1] if options.guide_all else min(GUIDED, x.shape[1])
        with_class, without = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, nothing])).chunk(2)
        mixed = torch.lerp(without[:, :count], with_class[:, :count], strength)
        return torch.cat([mixed, with_class[:, count:]], 1)

    return both


def sample_steps(count: int) -> list[int]:
    """The steps of a sample, from T − 1 down to 0."""
    steps: list[int] = np.linspace(0, NOISE_STEPS - 1, count).round()[::-1].astype(int).tolist()
    return steps


def take_noise_away(
    denoiser: Denoiser,
    x: Tensor,
    generators: Sequence[torch.Generator],
    options: GenerationOptions,
    *,
    schedule: NoiseSchedule,
    learned: bool,
    clip: bool,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return x_0 [B, C, H, W] in float32.

    Args:
        denoiser: see `guided`.
        x: noise [B, C, H, W] to start from, on the model's device.
        generators: of the images, for the noise that ddpm adds.
        options: ``sampler`` and ``steps``.
        schedule: of the noise.
        learned: whether the denoiser gives v̂; without it the variance of ddpm is β.
        clip: keep x̂_0 in [-1, 1], where pixels are.
        on_step: called after every step.

    Raises:
        ConfigError: the sampler needs diffusers, which is not installed.
    """
    steps = sample_steps(options.steps)
    if options.sampler == "ddpm":
        step = _ddpm(options.steps, generators, schedule, learned=learned, clip=clip)
    else:
        step = _ddim(steps, schedule, clip=clip)
    for t in steps:
        output = denoiser(x, torch.full((len(x),), t, device=x.device))
        x = step(output.float(), t, x)
        on_step()
    return x


Step = Callable[[Tensor, int, Tensor], Tensor]
"""From the denoiser's output, t and x_t to x_{t′}."""


def _ddpm(
    count: int, generators: Sequence[torch.Generator], schedule: NoiseSchedule, *, learned: bool, clip: bool
) -> Step:
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise ConfigError(f"the sampler ddpm takes its steps from diffusers: {EXTRA}, or choose ddim.") from error
    scheduler: Any = DDPMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=NOISE_STEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
        variance_type="learned_range" if learned else "fixed_large",
        clip_sample=clip,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(count)

    def step(output: Tensor, t: int, x: Tensor) -> Tensor:
        found: Tensor = scheduler.step(output, t, x, generator=list(generators)).prev_sample
        return found

    return step


def _ddim(steps: Sequence[int], schedule: NoiseSchedule, *, clip: bool) -> Step:
    signal: list[float] = process(schedule).signal.tolist()
    noise: list[float] = process(schedule).noise.tolist()
    following = dict(itertools.pairwise(steps))

    def step(output: Tensor, t: int, x: Tensor) -> Tensor:
        predicted, _ = split(output, x.shape[1])
        start = (x - noise[t] * predicted) / signal[t]
        if clip:
            start = start.clamp(-1, 1)
            predicted = (x - signal[t] * start) / noise[t]
        if t not in following:
            return start
        return signal[following[t]] * start + noise[following[t]] * predicted

    return step
