"""The autoencoder between images and the latents that a denoiser may work on, from `diffusers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.tasks.generation.sampling import EXTRA

__all__ = ["Autoencoder", "Latents"]


@dataclass(frozen=True)
class Latents:
    """What latents are.

    Attributes:
        autoencoder: a folder, or a name on the Hugging Face hub.
        scale: latents are so many times what the autoencoder gives.
        reduction: of the image's side.
        channels: of a latent.
    """

    autoencoder: str
    scale: float
    reduction: int
    channels: int

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Latents:
        """Read a `record`. Raises CheckpointError unless it is one."""
        name, scale = record.get("autoencoder"), record.get("scale")
        counts = [record.get(key) for key in ("reduction", "channels")]
        if not isinstance(name, str) or not isinstance(scale, float) or not 0 < scale < float("inf"):
            raise CheckpointError(f"a record of latents says their autoencoder and scale, got {name!r} and {scale!r}")
        if not all(type(count) is int and 1 <= count <= 1024 for count in counts):
            raise CheckpointError(f"a record of latents says their reduction and channels, got {counts}")
        return cls(name, scale, counts[0], counts[1])  # type: ignore[arg-type]  # looked at just now


class Autoencoder:
    """An AutoencoderKL that is opened from a folder or the hub.

    Args:
        name: folder that holds ``config.json`` and ``diffusion_pytorch_model.safetensors``, or a name on the hub.

    Raises:
        ConfigError: diffusers is not installed.
        CheckpointError: there is no such autoencoder, or the hub cannot be reached.
    """

    def __init__(self, name: str) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ConfigError(f"a model of latents needs an autoencoder of diffusers: {EXTRA}.") from error
        try:
            network: Any = AutoencoderKL.from_pretrained(name, use_safetensors=True)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"the autoencoder {name!r} cannot be opened: {reason} Give the folder of an AutoencoderKL of diffusers "
                "(config.json, diffusion_pytorch_model.safetensors) with --autoencoder FOLDER (in Python: "
                "autoencoder=FOLDER), or let this machine reach the Hugging Face hub once."
            ) from error
        self.name = name
        self._network = network.eval().requires_grad_(False)

    def __reduce__(self) -> tuple[type[Autoencoder], tuple[str]]:
        """Loading processes open it anew rather than being handed the weights."""
        return type(self), (self.name,)

    @property
    def latents(self) -> Latents:
        """What its configuration says of its latents."""
        said = self._network.config
        reduction = 2 ** (len(said.block_out_channels) - 1)
        return Latents(self.name, float(said.scaling_factor), reduction, int(said.latent_channels))

    def require(self, wanted: Latents) -> Autoencoder:
        """Return it if its latents are of the shape ``wanted``; raises ConfigError."""
        own = self.latents
        if (own.reduction, own.channels) != (wanted.reduction, wanted.channels):
            raise ConfigError(
                f"the model takes latents of {wanted.channels} channels and 1/{wanted.reduction} of the image's side, "
                f"and the autoencoder {self.name!r} gives {own.channels} channels and 1/{own.reduction}; give the one "
                f"it was trained with, {wanted.autoencoder!r}."
            )
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, scale: float, *, sample: bool) -> Tensor:
        """Return latents [B, c, H / r, W / r] of images [B, 3, H, W] in [-1, 1].

        Args:
            images: on any device, to which the autoencoder moves.
            scale: of the latents.
            sample: draw from the distribution that it gives, by torch's global generator, instead of its mode.
        """
        found = self._network.to(images.device).encode(images).latent_dist
        latents: Tensor = found.sample() if sample else found.mode()
        return latents * scale

    @torch.no_grad()
    def decode(self, latents: Tensor, scale: float) -> Tensor:
        """Return images [B, 3, H, W], about in [-1, 1]."""
        images: Tensor = self._network.to(latents.device).decode(latents / scale).sample
        return images
