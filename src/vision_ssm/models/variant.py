"""What one row of a variants table says: how the model is built, and what its authors published about it.

Light on purpose: neither torch nor timm is imported, so that the tables can be read without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vision_ssm.families import FAMILIES, named

__all__ = [
    "IMAGENET",
    "SMALL_IMAGES",
    "Autoencoder",
    "Denoiser",
    "Inputs",
    "Origin",
    "Variant",
    "Weights",
    "WithHeads",
    "all_variants",
    "full_name",
    "list_aliases",
    "maps_of_a_column",
    "pyramid_form",
]


@dataclass(frozen=True)
class Inputs:
    """The images and classes a variant is made for."""

    side: int
    classes: int
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# ImageNet-1K: resize to 256, crop 224.
IMAGENET = Inputs(224, 1000, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL_IMAGES = Inputs(32, 10, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Origin:
    """Where a family was published. ``commit`` is that of the code this library was compared with."""

    paper: str
    title: str
    repository: str
    commit: str
    licence: str


@dataclass(frozen=True)
class Weights:
    """Where the authors keep a file: on a ``page``, or in a repository of the Hugging Face hub, OWNER/NAME[@COMMIT].

    In a repository a pattern with ``*`` stands for the one file whose name it fits, in lower case.
    """

    file: str
    page: str = ""
    hub: str = ""

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        if not self.hub:
            return f"{self.page}/{self.file}"
        repository, _, commit = self.hub.partition("@")
        if "*" in self.file:
            return f"https://huggingface.co/{repository}/tree/{commit or 'main'}"
        return f"https://huggingface.co/{repository}/resolve/{commit or 'main'}/{self.file}"


@dataclass(frozen=True)
class WithHeads(ABC):
    """A published model of another task than classification: a backbone and its heads."""

    task: ClassVar[str]

    name: str
    backbone: str
    backbone_options: Mapping[str, Any]
    heads: Mapping[str, Any]
    params: int
    source: str  # of the scores
    weights: Weights | None
    origin: Origin

    @property
    @abstractmethod
    def published(self) -> str:
        """The scores in words."""

    @abstractmethod
    def options_of_heads(self) -> tuple[str, ...]:
        """Names of the options that are not the backbone's."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""


@dataclass(frozen=True)
class Variant:
    """One registered model.

    Accuracies are those that the authors report for ImageNet-1K validation, in percent, at the variant's own size; they
    have not been measured with this library. None stands for what nobody published.
    """

    name: str
    tag: str  # timm's, of the weights
    summary: str
    options: Mapping[str, Any]  # every option of the class that makes another network
    params: int  # exact; where weights were published, of the published class
    macs: int | None  # multiply-adds as `cost` counts them; None: counted when asked for
    origin: Origin
    published_macs: float | None = None  # the rounded figure in use
    macs_source: str | None = None
    top1: float | None = None
    top5: float | None = None
    source: str | None = None  # of the accuracies
    weights: Weights | None = None
    inputs: Inputs = IMAGENET
    alias: str | None = None  # a short name, for those who do not care which of several this is
    feature_cls: str | None = None  # timm's, of the ``features_only`` form; such variants are not listed

    @property
    def description(self) -> str:
        """The row in words: the docstring of the function that timm calls."""
        inputs, digits = self.inputs, 1 if self.params >= 2e6 else 2
        facts = [f"{self.params / 1e6:.{digits}f} M parameters"]
        if self.published_macs:
            facts.append(f"{self.published_macs / 1e9:.1f} G multiply-adds ({self.macs_source})")
        if self.top1:
            facts.append(f"{self.top1:.1f} % top-1 ({self.source})")
        origin = f"{self.origin.paper}, {self.origin.repository} at {self.origin.commit}"
        weights = f"{self.weights.address}, {self.origin.licence}" if self.weights else "the authors released none"
        return (
            f"{self.summary}.\n\n{inputs.classes} classes, {inputs.side} x {inputs.side} pixels; {', '.join(facts)}.\n"
            f"Weights: {weights}.\nSource: {origin}.\n"
        )


@dataclass(frozen=True)
class Autoencoder:
    """What turns images into the latents that a denoiser works on, and back: one of the Hugging Face hub's.

    Latents are ``scale`` times what it gives, and have a ``reduction``-th of the image's side.
    """

    hub: str
    scale: float
    reduction: int


@dataclass(frozen=True)
class Denoiser:
    """One model that tells the noise in an image. None of them has released weights."""

    name: str
    summary: str
    options: Mapping[str, Any]  # every option of the class that makes another network, and its own size and channels
    params: int  # exact
    macs: int  # multiply-adds of one call for one image as `cost` counts them
    origin: Origin
    autoencoder: Autoencoder | None = None  # None: it works on pixels

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of its own inputs, pixels or latents."""
        return self.options["in_chans"], self.options["img_size"], self.options["img_size"]


def full_name(name: str) -> str:
    """The registered name of a model, for that name or for its alias; a tag after a dot stays. Others are returned."""
    short, dot, tag = name.partition(".")
    return f"{list_aliases().get(short, short)}{dot}{tag}"


def list_aliases() -> dict[str, str]:
    """Short names of models, and the full ones; what takes a model's name takes these, timm's own functions do not."""
    rows = all_variants().values()  # the form of a model for dense tasks has the same row but for that
    return {row.alias: row.name for row in rows if row.alias is not None and row.feature_cls is None}


def all_variants() -> dict[str, Variant]:
    """Every registered model of this library by its name."""
    return {row.name: row for family in FAMILIES for row in named(family.variants).VARIANTS}


def pyramid_form(row: Variant) -> Variant:
    """The same model under a name whose ``features_only`` form has maps at strides 4, 8, 16 and 32.

    Code that takes a model by its name alone (segmentation_models_pytorch's 'tu-...', transformers' TimmBackbone) finds
    the pyramid so. With features_only=False it is the classifier.
    """
    summary = f"{row.summary} whose ``features_only`` form is a 4/8/16/32 pyramid"
    return replace(row, name=f"{row.name}_pyramid", summary=summary, feature_cls="pyramid")


def maps_of_a_column(options: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Which maps ``features_only`` gives of a column of so many steps with these options: timm's ``feature_cfg``."""
    from vision_ssm.models.pyramid import REDUCTIONS, FeaturePyramid, quarter_taps

    asked = options.get("feature_cls", "getter")
    if asked in ("pyramid", FeaturePyramid):
        return {"feature_cls": FeaturePyramid, "out_indices": tuple(range(len(REDUCTIONS)))}
    return {"feature_cls": asked, "out_indices": quarter_taps(steps)}
