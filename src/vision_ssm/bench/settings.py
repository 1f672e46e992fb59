"""What a benchmark measures: models x sizes x batches x dtypes x threads, and named presets of that."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["DTYPES", "MODES", "PRESETS", "VARIANTS", "Case", "Settings", "split_variant"]

MODES = ("inference", "training")
DTYPES = ("float32", "bfloat16")
VARIANTS = {"unfused": "attention as matrix products and a softmax, with every score in memory"}

# Sizes are (height, width). The first model is the one that ratios refer to.
PRESETS: dict[str, dict[str, Any]] = {
    "vim": {
        "models": ("vim_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_patch16_224+unfused"),
        "sizes": tuple((side, side) for side in (224, 512, 768, 1024, 1248)),
        "dtypes": ("float32", "bfloat16"),
    },
    "vim-small": {
        "models": ("vim_small_patch16_224", "deit_small_patch16_224"),
        "sizes": ((224, 224), (1248, 1248)),
        "dtypes": ("float32", "bfloat16"),
    },
    "hierarchical": {
        "models": (
            "vmamba_tiny_s1l8",
            "efficientvmamba_tiny",
            "swin_tiny_patch4_window7_224",
            "convnext_tiny",
            "mobilenetv3_large_100",
        ),
        "sizes": ((224, 224), (1024, 1024)),
        "dtypes": ("float32", "bfloat16"),
    },
}


@dataclass(frozen=True)
class Case:
    """One model under one set of circumstances."""

    model: str  # a registered name, with +VARIANT if any
    height: int
    width: int
    batch: int
    dtype: str
    threads: int
    mode: str
    device: str


@dataclass(frozen=True)
class Settings:
    """A benchmark. Models share each row of (size, batch, dtype, threads), and ratios refer to the first of them.

    Args:
        models: names registered with timm, ours or not, or exported files; ``NAME+unfused`` turns fused attention off.
        sizes: (height, width) in pixels.
        threads: of torch and, with it, of the C++ kernel.
        batches: images per pass.
        dtypes: of weights and activations alike: float32 or bfloat16.
        mode: 'inference' (forward under inference mode) or 'training' (forward and backward, no optimiser).
        rounds: timed samples of every model.
        device: a CPU or CUDA device.
        memory: measure peak memory too, in a fresh process for every case.
        note: whatever else a reader of the results should know.

    Raises:
        ConfigError: an empty or repeating list, or an unknown word.
    """

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("float32",)
    mode: str = "inference"
    rounds: int = 7
    device: str = "cpu"
    memory: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("models", "sizes", "threads", "batches", "dtypes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} must name at least one value and none twice, got {list(values)}")
        for name, values, allowed in (("mode", (self.mode,), MODES), ("dtypes", self.dtypes, DTYPES)):
            for value in values:
                if value not in allowed:
                    near = suggestion(value, allowed)
                    raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.{near}")
        numbers = {"sizes": sum(self.sizes, ()), "threads": self.threads, "batches": self.batches}
        for name, values in {**numbers, "rounds": (self.rounds,)}.items():
            if min(values) < 1:
                raise ConfigError(f"{name} must be at least 1, got {min(values)}")
        for model in self.models:
            split_variant(model)

    def groups(self) -> Iterator[list[Case]]:
        """Yield the cases that are measured in turn: all models under the same circumstances."""
        for dtype in self.dtypes:
            for threads in self.threads:
                for batch in self.batches:
                    for height, width in self.sizes:
                        yield [
                            Case(model, height, width, batch, dtype, threads, self.mode, self.device)
                            for model in self.models
                        ]

    @property
    def group_count(self) -> int:
        """Number of groups."""
        return len(self.dtypes) * len(self.threads) * len(self.batches) * len(self.sizes)

    def command(self) -> str:
        """Return the command line that asks for these settings, presets and defaults spelled out."""
        words = ["vision-ssm", "bench", "--models", *self.models, "--img-size"]
        words += [str(h) if h == w else f"{h}x{w}" for h, w in self.sizes]
        lists = {"--batch-size": self.batches, "--dtype": self.dtypes, "--threads": self.threads}
        for option, values in lists.items():
            words += [option, *map(str, values)]
        words += ["--mode", self.mode, "--rounds", str(self.rounds), "--device", self.device]
        return shlex.join(words if self.memory else [*words, "--no-memory"])


def split_variant(model: str) -> tuple[str, str | None]:
    """Split ``NAME+VARIANT`` into the registered name and the variant, None without one.

    Raises:
        ConfigError: there is no such variant.
    """
    name, plus, variant = model.partition("+")
    if plus and variant not in VARIANTS:
        near = suggestion(variant, VARIANTS)
        raise ConfigError(f"{model}: after + comes one of {', '.join(VARIANTS)}, got {variant!r}.{near}")
    return name, variant or None
