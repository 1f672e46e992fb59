"""The settings of generation: which images, and how samples of them are made. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import Field

from vision_ssm.settings import NotNegative, Section, setting
from vision_ssm.tasks.settings import DataSettings, TaskSettings

__all__ = [
    "NOISE_STEPS",
    "GenerationData",
    "GenerationOptions",
    "GenerationSettings",
    "LatentSettings",
    "NoiseSchedule",
    "NoiseSettings",
]

NOISE_STEPS = 1000
"""T of the diffusion process; samples are made in as many steps or fewer."""

NoiseSchedule = Literal["linear", "cosine"]

Steps = Annotated[int, Ge(2), Le(NOISE_STEPS)]
"""Of a sample: with a single one it would be the noise that it starts from."""


class GenerationData(DataSettings):
    """Which images, and how they are read."""

    path: str = setting(
        "", "Folder of class folders (with or without train/ and val/), or a name such as digits.", free=True
    )
    mirror: bool | None = setting(
        None, "Mirror half of the images left-right; null does unless mirrored images mean something else."
    )


class NoiseSettings(Section):
    """The noise that is learned."""

    schedule: NoiseSchedule = setting(
        "linear",
        "How it rises over the steps: linear as published for latents of 256 pixels, cosine for small images, of which "
        "linear leaves nothing half-way.",
    )


class LatentSettings(Section):
    """For models that denoise the latents of an autoencoder instead of pixels."""

    autoencoder: str | None = setting(
        None, "Folder of a diffusers AutoencoderKL, or its name on the hub; null takes the model's own."
    )


class GenerationOptions(Section):
    """What samples, and an evaluation by samples, may be asked for."""

    steps: Steps = setting(250, "Denoising steps per image.")
    sampler: Literal["ddpm", "ddim"] = setting(
        "ddpm", "ddpm adds noise at every step, as published; ddim adds none and needs fewer steps."
    )
    guidance: NotNegative = setting(
        1.0, "Strength of classifier-free guidance: 1 is none, more is more typical of the class and less various."
    )
    guide_all: bool = setting(False, "Guide every channel of the noise, not only the first three as published.")
    autoencoder: str | None = setting(
        None, "Folder or hub name of the autoencoder, where it is not found under the name that the weights give."
    )
    samples: Annotated[int, Ge(2)] = setting(
        1000, "Images that an evaluation makes, spread evenly over the classes of the data."
    )
    features: str | None = setting(
        None, "Weights whose features the Fréchet distance is taken in; null takes those that ship with the package."
    )
    classifier: str | None = setting(
        None, "Weights of a classifier that is asked whether samples are of the class asked for; null asks none."
    )


class GenerationSettings(TaskSettings):
    """The data, the noise and the autoencoder of a generation run."""

    data: GenerationData = Field(default_factory=GenerationData)
    noise: NoiseSettings = Field(default_factory=NoiseSettings)
    latents: LatentSettings = Field(default_factory=LatentSettings)
