"""From a configuration to the parts that the engine drives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn

from vision_ssm.data.batches import Samples
from vision_ssm.data.contents import contents_digest
from vision_ssm.data.loader import EpochLoader, samples_of_epoch
from vision_ssm.data.measuring import Bands, measure_bands
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.models.registry import takes_size
from vision_ssm.models.variant import full_name
from vision_ssm.tasks.registry import find_task
from vision_ssm.tasks.task import Task
from vision_ssm.training.batch_size import with_batch_size
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.division import Division
from vision_ssm.training.opening import open_data
from vision_ssm.training.randomness import seed_everything
from vision_ssm.training.schedule import scaled_rate
from vision_ssm.training.sinks import require_installed
from vision_ssm.training.starting import load_start

__all__ = ["Parts", "assemble", "make_optimizer"]


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        config: the configuration as it is carried out; ``notices`` say where it differs from what was asked for.
        task: that knows the training data.
        model: on its device, not wrapped.
        model_options: keyword arguments of `Task.build` that rebuild the model.
        division: of an update's images over the processes; the configuration speaks of those it began on.
        started_from: "scratch", "published weights" or a file.
        data: what there is to train on and what is held out, in a line for people.
        trained_on: fingerprint of the data that the training images were cut from, see `WeightsInfo.trained_on`.
        skipped: files that were left out, see `vision_ssm.training.opening.Opened`.
    """

    config: TrainConfig
    task: Task
    model: nn.Module
    model_options: dict[str, Any]
    preprocessing: Preprocessing
    train: EpochLoader
    val: EpochLoader
    division: Division
    started_from: str
    data: str
    trained_on: str = ""
    skipped: dict[str, dict[str, str]] | None = None
    notices: list[str] = field(default_factory=list)

    @functools.cached_property
    def data_identity(self) -> dict[str, str]:
        """Fingerprints that tell whether a resumed run sees the same images. Folders may move: names, bytes count."""
        sets = {"training images": self.train.dataset, "held-out images": self.val.dataset}
        names = {key: samples.fingerprint for key, samples in sets.items()}
        return names | {f"contents of the {key}": contents_digest(samples.paths) for key, samples in sets.items()}

    def files(self, indices: Sequence[int]) -> list[str]:
        """File names of training images."""
        return [str(self.train.dataset.paths[index]) for index in indices]


def assemble(
    config: TrainConfig, processes: Processes, *, resuming: bool, begun_on: int | None = None, look: bool = True
) -> Parts:
    """Open the data, make the model with its start weights, and the loaders.

    Args:
        config: of the run.
        processes: for the share of the data and the device.
        resuming: start weights are about to be replaced by a checkpoint, so none are read.
        begun_on: processes that a resumed run began on; None: as many as now.
        look: look through the files first, see `vision_ssm.training.opening.open_data`.

    Raises:
        ConfigError, DataError, CheckpointError: with what is wrong and what to do.
    """
    if not config.data.path:
        raise ConfigError("no data: give a folder, or the name of a data set such as digits (data.path).")
    require_installed(config.run.log_to)
    if config.run.amp == "fp16" and processes.device.type != "cuda":
        raise ConfigError(f"run.amp fp16 needs a CUDA device, and this run is on {processes.device}; use bf16 or none.")
    if config.model.start_required and not (config.model.pretrained or config.model.checkpoint or resuming):
        raise ConfigError(
            "these settings fine-tune, and nothing says from which weights: give --pretrained for the published ones "
            "or --checkpoint FILE (model.pretrained, model.checkpoint). A model of random weights learns more by "
            "--recipe small; --model.start_required false begins from random weights nevertheless."
        )
    config = config.replace(**{"model.name": full_name(config.model.name)})
    task: Task = find_task(config.task).load()(config.settings)
    opened = open_data(config, task, processes, resuming=resuming, look=look)
    train_set, val_set = opened.train, opened.val
    if config.data.batch_size == "auto":
        config, told = with_batch_size(config, task, len(train_set), processes, resuming=resuming)
        opened.notices.append(told)
    bands = _bands(config, task, train_set)
    model, options = _model(config, task, bands, processes, resuming=resuming)
    preprocessing = task.preprocessing(model)
    if bands is not None:
        preprocessing = bands.applied(preprocessing)
    if config.model.img_size is not None:
        preprocessing = preprocessing.with_size(config.model.img_size)
    found = [getattr(samples, "found", f"{len(samples):,} images") for samples in (train_set, val_set)]
    data = f"to train on, {found[0]}; held out, {found[1]}"
    notices = [*opened.notices, *_told_of(bands, pretrained=config.model.pretrained and not resuming)]
    started_from = "published weights" if config.model.pretrained else "scratch"
    if config.model.checkpoint and not resuming:
        started_from = config.model.checkpoint
        notices += load_start(
            model, config.model.checkpoint, backbone=task.backbone(model), positions=config.model.positions
        )
    begun_on = begun_on or processes.world
    config = _with_enough_images(config, task, len(train_set), begun_on, notices)
    division = Division.of(config, processes.world, begun_on, multiple=task.batch_multiple)
    if begun_on != processes.world:
        notices.append(
            f"The run began on {begun_on} processes and goes on with {processes.world}: of each update one takes "
            f"{division.accumulate} batches of {division.batch_size} images."
        )
    train = _train_loader(config, task, train_set, preprocessing, processes, division)
    rate = scaled_rate(config, begun_on)
    if config.schedule.name in ("cosine", "poly") and config.schedule.min_lr > rate:
        notices.append(f"The learning rate rises: from {rate:.3g} to schedule.min_lr, {config.schedule.min_lr:.3g}.")
    val = EpochLoader(
        val_set,
        task.transform(preprocessing, train=False, native=task.native),
        collate=task.collate,
        batch_size=config.data.eval_batch_size or config.batch_size,
        workers=config.data.workers,
        rank=processes.rank,
        world_size=processes.world,
    )
    if task.sync_batch_norm and processes.world > 1 and processes.device.type != "cuda":
        notices.append("Batch norms take each process's own statistics: PyTorch synchronises them on GPUs only.")
    model.to(processes.device)
    about = opened.identity, opened.skipped, notices
    return Parts(config, task, model, options, preprocessing, train, val, division, started_from, data, *about)


def _bands(config: TrainConfig, task: Task, samples: Samples) -> Bands | None:
    """What the images are made of, where they are not pictures in colour."""
    if not task.scenes:
        return None
    bands = measure_bands(samples, grey=getattr(config.data, "grey", False), seed=config.run.seed)
    said = [f"data.{name}" for name in ("mean", "std") if getattr(config.data, name, None) is not None]
    if bands is not None and said:
        raise ConfigError(f"{' and '.join(said)} are for pictures in colour; those of other images are measured.")
    return bands


def _told_of(bands: Bands | None, *, pretrained: bool) -> list[str]:
    if bands is None:
        return []
    adapted = [
        f"The pretrained first layer, of 3 channels, was repeated for {bands.count} and scaled by 3/{bands.count}."
        if bands.count > 1
        else "The pretrained first layer, of 3 channels, was summed to one."
    ]
    return [str(bands), *(adapted if pretrained and bands.count != 3 else [])]


def _model(
    config: TrainConfig, task: Task, bands: Bands | None, processes: Processes, *, resuming: bool
) -> tuple[nn.Module, dict[str, Any]]:
    processes.at("making the model")
    wanted = config.model
    pretrained = wanted.pretrained and not resuming
    options = dict(wanted.options)
    if resuming:  # what timm would load into the model, before the checkpoint replaces it
        options = {name: value for name, value in options.items() if name not in ("checkpoint_path", "pretrained")}
    channels = 3 if bands is None else bands.count
    if options.get("in_chans", channels) != channels:
        raise ConfigError(
            f"model.options.in_chans is {options['in_chans']}, and the images have {channels} channels; leave it out, "
            "it is taken from them."
        )
    if channels != 3:
        options["in_chans"] = channels
    if wanted.img_size is not None and takes_size(wanted.name):
        options["img_size"] = wanted.img_size
    extra: dict[str, Any] = {"pretrained": True} if pretrained else {}
    if wanted.drop_path_rate:
        extra["drop_path_rate"] = wanted.drop_path_rate
    seed_everything(config.run.seed, "model")
    model = task.build(wanted.name, **options, **extra)
    made_for = getattr(model, "published_task", task.name)
    if made_for != task.name:
        raise ConfigError(f"{wanted.name} is a model of the task {made_for}, and this is {task.name}.")
    if wanted.grad_checkpointing:
        task.backbone(model).set_grad_checkpointing(True)  # type: ignore[operator]
    return model, options


def _with_enough_images(
    config: TrainConfig, task: Task, images: int, processes: int, notices: list[str]
) -> TrainConfig:
    """The configuration with a batch size that the data can fill on so many processes."""
    available = samples_of_epoch(images, task.repeats) // processes
    if config.batch_size <= available:
        return config
    reduced = available - available % task.batch_multiple
    if reduced < 1:
        raise ConfigError(
            f"{images} training image{'s are' if images > 1 else ' is'} too few: these settings take batches of "
            f"{task.batch_multiple} or a multiple of it{f' on each of {processes} processes' if processes > 1 else ''}."
        )
    notices.append(
        f"data.batch_size is {reduced} instead of {config.batch_size}: there are only {available} training images"
        f"{' per process' if processes > 1 else ''}."
    )
    return config.replace(**{"data.batch_size": reduced})


def _train_loader(
    config: TrainConfig,
    task: Task,
    samples: Samples,
    preprocessing: Preprocessing,
    processes: Processes,
    division: Division,
) -> EpochLoader:
    return EpochLoader(
        samples,
        task.transform(preprocessing, train=True),
        collate=task.collate,
        batch_size=division.batch_size,
        seed=config.run.seed,
        train=True,
        multiple=division.whole,
        workers=config.data.workers,
        rank=processes.rank,
        world_size=processes.world,
        repeats=task.repeats,
        groups=task.groups(samples) if task.balanced else None,
    )


def make_optimizer(
    config: TrainConfig, model: nn.Module, processes: int, *, backbone: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser with the backbone's own rules for weight decay and, where asked for, per-layer learning rates.

    Args:
        config: of the run.
        model: whose parameters it updates.
        processes: of which the configuration speaks, for the batch that the learning rate may be scaled by.
        backbone: the part of ``model`` that has the rules; None for all of it.

    Raises ConfigError for an unknown name, or for an option that this optimiser or this model does not have.
    """
    optim = config.optim
    known = [str(name) for name in list_optimizers()]
    if optim.name not in known:
        raise ConfigError(f"optim.name {optim.name!r} is no optimiser that timm knows.{suggestion(optim.name, known)}")
    options: dict[str, Any] = {
        name: getattr(optim, name) for name in ("betas", "eps") if getattr(optim, name) is not None
    }
    facts = get_optimizer_info(optim.name)
    for name, applies in (("betas", facts.has_betas), ("eps", facts.has_eps)):
        if name in options and not applies:  # timm would drop it without a word
            raise ConfigError(f"optim.{name} does not apply to {optim.name}; leave it null.")
    inner = model if backbone is None else backbone
    fallback = _not_for_muon(model, inner) if "muon" in optim.name else []
    layer_decay = optim.layer_decay
    if inner is not model and layer_decay is not None:  # timm would take all of the model for one layer
        options["param_group_fn"] = functools.partial(
            _decayed_by_layer, backbone=inner, weight_decay=optim.weight_decay, layer_decay=layer_decay,
            muon="muon" in optim.name,
        )  # fmt: skip
        layer_decay = None
    elif inner is not model:
        options["param_group_fn"] = functools.partial(
            param_groups_weight_decay,
            weight_decay=optim.weight_decay,
            no_weight_decay_list=_not_decayed(model, inner),
            fallback_list=fallback,
        )
    elif fallback:
        options["fallback_list"] = fallback
    try:
        return create_optimizer_v2(
            model,
            opt=optim.name,
            lr=scaled_rate(config, processes),
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            layer_decay=layer_decay,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{optim.name} refuses these optim settings: {error}") from error


def _decayed_by_layer(
    model: nn.Module, *, backbone: nn.Module, weight_decay: float, layer_decay: float, muon: bool
) -> list[dict[str, Any]]:
    """Parameter groups of a model around a backbone: what is around it learns at the full rate, as a head does."""
    inside = param_groups_layer_decay(
        backbone,
        weight_decay,
        no_weight_decay_list=getattr(backbone, "no_weight_decay", set)(),
        fallback_list=_not_for_muon(backbone, backbone) if muon else (),
        layer_decay=layer_decay,
    )
    for group in inside:  # the backbone's last layer is one below what is around it
        group["lr_scale"] *= layer_decay
    known = {id(p) for p in backbone.parameters()}
    around = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    other = {"lr_scale": 1.0, **({"use_fallback": True} if muon else {})}
    groups = [
        {"params": [p for p in around if p.dim() > 1], "weight_decay": weight_decay, **other},
        {"params": [p for p in around if p.dim() <= 1], "weight_decay": 0.0, **other},
    ]
    return [*(group for group in groups if group["params"]), *inside]


def _not_decayed(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Names, in ``model``, of the parameters that the backbone spares from weight decay."""
    rule: set[str] = getattr(backbone, "no_weight_decay", set)()
    spared = {id(p) for name, p in backbone.named_parameters() if name in rule}
    return [name for name, p in model.named_parameters() if id(p) in spared]


def _not_for_muon(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Names that Muon leaves to its Adam: all but the matrices of the backbone's linear layers before the head.

    Muon makes an update orthogonal, which means something for a matrix that maps vectors; timm would flatten the
    stacked parameters of the scan directions to matrices of no meaning. Source: Muon's author leaves embeddings and
    heads to Adam (https://kellerjordan.github.io/posts/muon/).
    """
    classifier = getattr(backbone, "get_classifier", None)
    head = {id(p) for p in classifier().parameters()} if classifier is not None else set()
    matrices = {id(m.weight) for m in backbone.modules() if isinstance(m, nn.Linear)} - head
    return [name for name, p in model.named_parameters() if id(p) not in matrices]
