"""Public names that moved or went, and what is said to whoever still uses one.

`MOVED` is the whole truth; the rest makes imports, attributes and calls answer from it. An entry may go two minor
versions after the one that brought it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn, TypeVar, cast

__all__ = ["MOVED", "Finder", "Gone", "answer", "arguments", "attributes", "refuse", "told"]

_PACKAGE = "vision_ssm."

MOVED = {
    # Old name -> new name, both without the package's, or a sentence. The names of a module that went are listed where
    # they did not all go to the module's own new place. "function(argument)" is an argument, under the function's place
    # today.
    # ------------------------------------------------------------------------------------------------------ models
    "models.published": "models.variant",
    "models.published.PUBLISHED": "models.variant.all_variants",
    "models.published.PublishedResult": "models.variant.Variant",
    "models.PUBLISHED": "models.all_variants",
    "models.PublishedResult": "models.Variant",
    "models.vim.POOLS": "models.columnar.POOLS",
    "models.registry.FAMILIES": "families.FAMILIES",
    "models.building.imagenet_cfg": "models.variant.IMAGENET",
    "models.building.small_image_cfg": "models.variant.SMALL_IMAGES",
    "models.building.merged_options": "every Variant of models.variant holds all of its options",
    "checkpoints.loading.PublishedModel": "a model's layout is families.family_of(model).layout, no attribute",
    "analysis.model_cost.cost(batch)": "its name is batch_size",
    "analysis.table.recounted_row": "analysis.model_table(name, recount=True) counts anew",
    # -------------------------------------------------------------------------------------- data and classification
    "data.folders": "data.labelled.folders",
    "data.folders.image_files": "data.files.image_files",
    "data.named": "data.labelled.named",
    "data.sources": "data.labelled.sources",
    "data.sources.ImageDataset": "data.batches.Samples",
    "data.transforms": "tasks.classification.transforms",
    "data.transforms.Normalise": "data.normalise.Normalise",
    "data.images.open_image": "data.images.open_file",
    "data.images.DECODER_ERRORS": "whatever a decoder raises is a DataError of that image",
    "data.strips_raw.raw_bands": "data.strips_raw.read_raw_header",
    "data.strips_tiff.is_tiff": "data.tiff_header.is_tiff",
    "data.strips_tiff.tiff_bands": "data.strips_tiff.open_tiff",
    "data.loader.seeded": "nothing used it; the loader seeds every sample, and the engine every step",
    "data.preprocessing.Augmentation": "tasks.classification.settings.AugmentSettings",
    "data.preprocessing.SMALL_IMAGE_SIDE": "tasks.classification.bands.SMALL_IMAGE_SIDE",
    "data.preprocessing.INTERPOLATIONS": "data.preprocessing.Interpolation",
    "data.preprocessing.CROP_MODES": "data.preprocessing.CropMode",
    "tasks.classification.Classification": "tasks.classification.task.Classification",
    "tasks.classification.ClassificationMeter": "tasks.classification.meter.ClassificationMeter",
    "tasks.classification.Mixing": "tasks.classification.settings.AugmentSettings",
    "tasks.classification.task.Classification(class_names, label_smoothing, mixing)": (
        "it takes a ClassificationSettings, and class names come from prepare(samples) or restore(record, settings)"
    ),
    "tasks.classification.transforms.build_train_transform(augmentation)": "its name is augment, an AugmentSettings",
    # --------------------------------------------------------------------------------------- inference and weights
    "inference.classes": "tasks.classes",
    "inference.evaluate.Guess": "tasks.classification.meter.Guess",
    "inference.opening": "weights.opening",
    "inference.opening.AMP_TYPES": "device.AMP_TYPES",
    "inference.opening.autocast": "device.autocast",
    "inference.opening.choose_device": "device.choose_device",
    "inference.opening.preprocessing_of": "tasks.task.Task.preprocessing",
    "inference.report": "tasks.classification.pictures",
    "inference.report.draw_curve": "training.curve.draw_curve",
    "inference.report.png_figure": "plots.png_figure",
    "inference.shipped": "weights.shipped",
    "inference.shipped.describe": "tasks.task.Task.knows",
    "inference.weights": "weights.files",
    "weights.files.WeightsInfo(class_names)": (
        'it is part of what a task records: WeightsInfo(model, options, "classification", {"class_names": names}, ...)'
    ),
    # ---------------------------------------------------------------------------------------------------- training
    "training.checkpoint": "training.state",
    "training.settings": "settings",
    "training.settings.setting": "call settings.setting; limits are types such as settings.Positive",
    "training.config.AugmentConfig": "tasks.classification.settings.AugmentSettings",
    "training.config.DataConfig": "tasks.classification.settings.ClassificationData",
    "training.config.TrainConfig.mixes": "tasks.classification.settings.AugmentSettings.mixes",
    "training.config.TrainConfig.total_epochs": "training.schedule.Length.epochs",
    "training.dry_run.DryRun.classes": "training.dry_run.DryRun.knows",
    "training.events.RunStarted.classes": "training.events.RunStarted.knows",
    "cli.console.score": "tasks.scores.Score.text",
    # ------------------------------------------------------------------------------------------------------ layers
    "layers.column": "layers.one_call",
    "layers.column.try_one_call": "layers.one_call.vim_block",
    "layers.mlp": "layers.one_call",
    "layers.mlp.TiledMlp": "blocks hold timm's Mlp, which layers.one_call.mlp_branch runs where it may",
    "layers.add_and_norm": "layers.one_call.add_and_norm",
    "layers.joins_norms": "layers.one_call.Column decides it",
    "layers.run_column": "layers.one_call.Column",
    "layers.try_one_call": "layers.one_call.vim_block",
    "layers.blocks.is_plain_block": "layers.untouched.untouched",
    "layers.blocks.joins_norms": "layers.one_call.Column decides it",
    "layers.blocks.run_column": "layers.one_call.Column",
    "layers.norms.add_and_norm": "layers.one_call.add_and_norm",
    "layers.norms.described_norm": "layers.one_call describes norms itself",
    "layers.options.drops_nothing": "layers.one_call decides it",
    "layers.options.has_global_hooks": "layers.untouched.untouched",
    "layers.options.is_plain": "layers.untouched.untouched",
    # --------------------------------------------------------------------------------------------------- operators
    "ops.backends": "ops.dispatch",
    "ops.backends.choose": "call ops.dispatch.choose(operator, device, dtype, name)",
    "ops.backends.explain": "call ops.explain(operator, device, dtype)",
    "ops.backends.inference_call_applies": "call ops.dispatch.native_call_applies(operator, x, others)",
    "ops.branch": "ops.vim_block.op",
    "ops.chunked": "ops.scan.chunked",
    "ops.chunked.ChunkedBackend": "a backend is a module with the functions forward and backward",
    "ops.column": "ops.vim_block.column",
    "ops.contract": "ops.scan.contract",
    "ops.contract.Backend": "ops.dispatch.Backend",
    "ops.contract.Cover": "ops.traversal.Cover",
    "ops.contract.cover_of": "ops.traversal.cover_of",
    "ops.conv.causal_conv1d": "ops.conv.op.causal_conv1d",
    "ops.cpu": "ops.scan.cpu",
    "ops.cpu.CpuBackend": "a backend is a module with the functions forward and backward",
    "ops.cpu_branch": "ops.vim_block.cpu_training",
    "ops.cpu_conv": "ops.conv.cpu",
    "ops.cpu_conv.MOST_TAPS": "ops.conv.contract.MOST_TAPS",
    "ops.cpu_ssm": "ops.vim_block.cpu",
    "ops.cpu_ssm.MOST_TAPS": "ops.conv.contract.MOST_TAPS",
    "ops.cpu_ssm.NORMS": "ops.add_norm.contract.NORMS",
    "ops.cpu_ssm.NormWeights": "ops.add_norm.contract.NormWeights",
    "ops.cpu_ssm.SsmWeights": "ops.ssm.contract.SsmWeights",
    "ops.cpu_ssm.forward": "ops.ssm.cpu.forward",
    "ops.embed": "ops.patch_embed.op",
    "ops.mlp.MlpWeights": "ops.MlpWeights",
    "ops.norm": "ops.add_norm.op",
    "ops.recycled": "ops.vim_block.recycled",
    "ops.reference": "ops.scan.reference",
    "ops.reference.ReferenceBackend": "a backend is a module with the functions forward and backward",
    "ops.scan.selective_scan": "ops.scan.op.selective_scan",
    "ops.triton_backend": "ops.scan.triton",
    "ops.triton_backend.TritonBackend": "a backend is a module with the functions forward and backward",
    "ops.triton_backend.on_device_of": "ops.gpu.on_device_of",
    "ops.triton_backend.processors": "ops.gpu.processors",
    "ops.triton_backward": "ops.scan.triton_backward",
    "ops.triton_conv": "ops.conv.triton",
    "ops.triton_forward": "ops.scan.triton_forward",
    "ops.triton_norm": "ops.add_norm.triton",
    "ops.triton_parts": "ops.scan.triton_parts",
    "ops.triton_schedule": "ops.scan.triton_schedule",
    "ops.norm.add_norm_applies": "ops.add_norm_applies",
    "ops.fuses_norms": "ops.add_norm_applies",
    "ops.norm.fuses_norms": "ops.add_norm_applies",
    "ops.one_pass": "ops.selective_ssm",
    "ops.ssm.one_pass": "ops.selective_ssm",
    "ops.one_pass_applies": "ops.selective_ssm_applies",
    "ops.ssm.one_pass_applies": "ops.selective_ssm_applies",
    # What runs in one call, by the name of its operator.
    "ops.Branch": "ops.VimBlock",
    "ops.branch.Branch": "ops.VimBlock",
    "ops.cpu_ssm.Branch": "ops.VimBlock",
    "ops.BranchWeights": "ops.VimBlock",
    "ops.branch.BranchWeights": "ops.VimBlock",
    "ops.cpu_ssm.BranchWeights": "ops.VimBlock",
    "ops.cpu_ssm.BRANCH_WEIGHTS": "ops.vim_block.contract.WEIGHTS",
    "ops.cpu_ssm.BranchArgument": "ops.vim_block.cpu.BlockArgument",
    "ops.branch.NormWeights": "ops.NormWeights",
    "ops.branch.SsmWeights": "ops.SsmWeights",
    "ops.branch.applicable": "ops.vim_block.op.applies",
    "ops.branch.stream_backend": "ops.vim_block.op.takes_stream",
    "ops.ResidualColumn": "ops.VimColumn",
    "ops.column.ResidualColumn": "ops.VimColumn",
    "ops.branch_applies": "ops.vim_block_applies",
    "ops.branch.branch_applies": "ops.vim_block_applies",
    "ops.residual_branch": "ops.vim_block",
    "ops.branch.residual_branch": "ops.vim_block",
    "ops.try_residual_branch": "ask ops.vim_block_applies, then call ops.vim_block",
    "ops.branch.try_residual_branch": "ask ops.vim_block_applies, then call ops.vim_block",
    "ops.embed_applies": "ops.embed_patches_applies",
    "ops.embed.embed_applies": "ops.embed_patches_applies",
    "ops.mlp_applies": "ops.mlp_branch_applies",
    "ops.mlp.mlp_applies": "ops.mlp_branch_applies",
    "ops.residual_mlp": "ops.mlp_branch",
    "ops.mlp.residual_mlp": "ops.mlp_branch",
}
"""What moved, see the module. Errors that a class itself gives: `inference.evaluate.Evaluation`, `ops.explain`."""


def told(name: str) -> str | None:
    """Return what is said of a name that moved, with or without the package's before it; None if it did not."""
    name = name.removeprefix(_PACKAGE)
    if name not in MOVED:
        return None
    inside = [entry for entry in MOVED if entry.startswith(f"{name}.")]
    lines = [_line(name, _PACKAGE + name), *(_line(entry, entry.removeprefix(f"{name}.")) for entry in inside)]
    return "; ".join(lines)


def _line(entry: str, shown: str) -> str:
    new = MOVED[entry]
    return f"{shown} is gone: {new}" if " " in new else f"{shown} is now {_PACKAGE}{new}"


class Finder(MetaPathFinder):
    """Answers imports that no other finder could serve, so it goes to the end of `sys.meta_path`.

    That covers modules, and names that ``from PACKAGE import NAME`` looks for among the package's modules.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing. Raises ModuleNotFoundError for what moved."""
        text = told(fullname) if fullname.startswith(_PACKAGE) else None
        if text is not None:
            raise ModuleNotFoundError(text)  # without a name: with one, `from PACKAGE import NAME` drops the text
        return None


def answer(module: str) -> None:
    """Make a module, which is still there and has lost names, answer for them: ``answer(__name__)``."""
    # Set from here rather than written in the module, so that type checkers still find misspelt names.
    sys.modules[module].__dict__["__getattr__"] = partial(refuse, module)


def refuse(module: str, name: str) -> NoReturn:
    """Say that a module does not have a name, and where the name is now."""
    text = told(f"{module}.{name}")
    if text is not None:
        raise ImportError(text)  # the text of an AttributeError would be lost in `from MODULE import NAME`
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


class Gone:
    """An attribute that is no more, in its class."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __get__(self, instance: object | None, owner: type) -> Gone:
        if instance is None:  # pydantic looks whether the class has it before it lets the error through
            return self
        raise AttributeError(self.text)


T = TypeVar("T", bound=Callable[..., Any])


def attributes(owner: T) -> T:
    """Decorate a class that has lost attributes."""
    place = _place(owner)
    for entry in MOVED:
        if entry.startswith(f"{place}."):
            setattr(owner, entry.removeprefix(f"{place}."), Gone(_line(entry, entry)))
    return owner


def arguments(function: T) -> T:
    """Decorate a function, or a class, whose arguments changed: calls that do not fit any more are told how."""
    import inspect

    place = _place(function)
    changes = "; ".join(_line(entry, entry.removeprefix(place)) for entry in MOVED if entry.startswith(f"{place}("))
    called = vars(function)["__init__"] if isinstance(function, type) else function
    parameters = inspect.signature(called)

    @wraps(called)
    def checked(*args: Any, **given: Any) -> Any:
        try:
            parameters.bind(*args, **given)
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}. {changes}") from None
        return called(*args, **given)

    if isinstance(function, type):
        setattr(function, "__init__", checked)  # noqa: B010 -- to a type checker a class is an instance here
        return function
    return cast("T", checked)


def _place(thing: Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}".removeprefix(_PACKAGE)
