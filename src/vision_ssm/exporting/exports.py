"""From weights to a checked file for another runtime."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.exporting import aoti_files, onnx_files, openvino_files, quantising, torch_files
from vision_ssm.exporting.checking import Check, check, check_kept, require
from vision_ssm.exporting.lowering import Lower, Written, lowering
from vision_ssm.exporting.programs import check_exportable, example, step_of
from vision_ssm.exporting.settings import OF_TORCH, Settings
from vision_ssm.storage import require_writable, whole_file
from vision_ssm.tasks.exported import Form, StandIn
from vision_ssm.weights.exported import RECORD, ExportRecord, read_exported
from vision_ssm.weights.files import DESCRIPTION, Loaded, WeightsInfo
from vision_ssm.weights.opening import open_model

__all__ = ["Exported", "export"]


class Writer(Protocol):
    """A module that writes a format."""

    def write(
        self,
        path: Path,
        form: Form,
        images: Tensor,
        *,
        dynamic: Sequence[str],
        step: int,
        target: str,
        lower: Lower | None,
    ) -> Written:
        """Write a model, without a description."""

    def describe(self, path: Path, entries: Mapping[str, str]) -> None:
        """Put entries into the metadata of a file, in place of what it said before."""


WRITERS: dict[str, Writer] = {
    "onnx": onnx_files,
    "openvino": openvino_files,
    "torch": torch_files,
    "aoti": aoti_files,
}
"""What writes a format."""

BESIDE = {"openvino": (".bin",)}
"""How files end that a format writes beside the one that is named."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of it.
        info: description of the weights.
        record: how it was exported.
        check: what came of comparing it with the model.
    """

    path: Path
    info: WeightsInfo
    record: ExportRecord
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        record = dataclasses.asdict(self.record)
        return {"path": str(self.path), "model": self.info.model, "task": self.info.task, **record}


def export(
    weights: str | Path | Loaded | None = None,
    output: str | Path | None = None,
    *,
    format: str = "onnx",  # the word of the command and of everybody else
    target: str | None = None,
    dynamic: Sequence[str] = (),
    img_size: int | tuple[int, int] | None = None,
    precision: str = "float32",
    calibrate: str | Path | None = None,
    tolerance: float | None = None,
    model: str | None = None,
    on_stage: quantising.OnStage | None = None,
) -> Exported:
    """Write a model as a file for another runtime, run it there, and keep it only if it says what the model says.

    The file holds what prediction needs beside the network: preparation of images, names of classes, the record of the
    task, and what came of the check. `vision_ssm.predict`, `evaluate` and `features` take it in the place of weights.

    Args:
        weights: as for `vision_ssm.predict`.
        output: the file; None for one named after the weights, beside them, or in this folder where they ship with the
            package or were published.
        format: ``onnx``; ``openvino``, a pair of files, NAME.xml and NAME.bin; ``torch``, a program that torch opens
            without this library; ``aoti``, a library compiled for this processor, which torch opens.
        target: of ``onnx``, ``onnxruntime`` with its operator for gated linear attention; of ``aoti``, ``vision-ssm``
            with this library's operators, which has to be installed where the file is used; of all, ``portable`` with
            the format's own operators only. None for the first that the format has.
        dynamic: what is left open, of ``batch`` and ``size``. Otherwise a file takes one image of one size.
        img_size: side, or (height, width); None for that of training.
        precision: ``float32``; ``float16``, weights stored in half the room, computed with as before; ``int8``,
            products in whole numbers, see `vision_ssm.exporting.quantising`.
        calibrate: for INT8, folder or name of data with known answers.
        tolerance: largest error of an output over its largest absolute value; None for that of the precision.
        model: registered name of the model that a checkpoint belongs to.
        on_stage: called with (what is being done, done, in all) while INT8 looks at the data, which can take minutes.

    Raises:
        ConfigError: an option is out of range or not for this task, a package is missing, or the model is one that
            cannot be exported: of a task without export, in training mode, with hooks, of another package's class;
            what it would write lies over the weights, or over a NAME.bin that is from no export;
        CheckpointError: unusable weights, or the file differs from the model, in which case none is left;
        DataError: ``calibrate`` names data that are unusable, or have classes that the model does not know.
    """
    asked = Settings(format, target or "", tuple(dynamic), img_size, tolerance, precision, calibrate)
    loaded = weights if isinstance(weights, Loaded) else open_model(weights, model=model, device="cpu")
    _require_model(loaded)
    check_exportable(loaded.model)
    path = _place(loaded.info, asked) if output is None else Path(output)
    if path.suffix.lower() != asked.suffix:
        raise ConfigError(f"files in {asked.format} format end in {asked.suffix}, got {str(path)!r}.")
    _require_free(path, loaded.info, asked)
    require_writable(path.parent, error=CheckpointError)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _written(path, loaded, asked, on_stage or _unheard)


def _unheard(stage: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def _require_model(loaded: Loaded) -> None:
    if isinstance(loaded.model, StandIn):
        raise ConfigError(f"{loaded.info.source} is an exported model already; give the weights that it came from.")
    if any(not tensor.is_cpu for tensor in loaded.model.state_dict().values()):
        raise ConfigError("models are exported from the CPU: load it with device='cpu'.")


def _require_free(path: Path, info: WeightsInfo, asked: Settings) -> None:
    """Refuse to write over the weights, or over a file beside the named one that no export wrote."""
    beside = [path.with_suffix(suffix) for suffix in BESIDE.get(asked.format, ())]
    source = Path(info.source)
    for place in (path, *beside):
        if place.exists() and source.is_file() and place.samefile(source):
            raise ConfigError(f"the export would write over its weights, {str(place)!r}; name another output.")
    if not beside or (path.is_file() and RECORD in path.read_text(errors="ignore")):
        return
    for place in beside:
        if place.exists():
            raise ConfigError(
                f"the export would write over {str(place)!r}, which is from no export to {str(path)!r}; name another "
                "output, or move that file."
            )


def _require_possible(form: Form, info: WeightsInfo, asked: Settings) -> None:
    if "size" in asked.dynamic and not form.any_size:
        raise ConfigError(
            f"models of the task {info.task} are bound to one size once they are exported; leave size out of "
            "dynamic, and say which size (--img-size)."
        )
    if "batch" in asked.dynamic and not form.any_batch:
        raise ConfigError(
            f"models of the task {info.task} take images one by one once they are exported; leave batch out of dynamic."
        )
    if asked.format in OF_TORCH and not form.of_torch:
        raise ConfigError(
            f"models of the task {info.task} have no form in torch's own operators alone; choose format onnx or "
            "openvino."
        )


def _written(path: Path, loaded: Loaded, asked: Settings, on_stage: quantising.OnStage) -> Exported:
    task = loaded.task()
    form = task.exported(loaded.model)
    form.module.eval()
    _require_possible(form, loaded.info, asked)
    prepared = loaded.info.preprocessing
    if asked.img_size is not None:
        prepared = prepared.with_size(asked.img_size)
    info = dataclasses.replace(loaded.info, preprocessing=prepared)
    channels, height, width = prepared.input_size
    step = step_of(task.backbone(loaded.model)) if "size" in asked.dynamic else 1
    if height % step or width % step:
        raise ConfigError(f"with an open size, sides are multiples of {step}, got {height}x{width}; give --img-size.")
    if asked.calibrate is not None:
        quantising.require_data(loaded, asked.calibrate)
    images = example((height, width), channels, asked.dynamic)
    record = ExportRecord(
        asked.format, asked.target, form.outputs, (height, width), asked.dynamic, step, asked.precision
    )
    writer, lower = WRITERS[asked.format], lowering(Loaded(loaded.model, info), form, record, asked, on_stage)
    # Beside its place, under its own name: runtimes know files by how they end, and pairs by what they are called.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        packages, lowered = writer.write(
            draft, form, images, dynamic=asked.dynamic, step=step, target=asked.target, lower=lower
        )
        record = dataclasses.replace(record, versions=_versions(packages))
        writer.describe(draft, {DESCRIPTION: info.to_json(), RECORD: record.to_json()})
        found = check(read_exported(draft), form, asked.allowed, lowered.draw)
        require(found)
        outcome = lowered.quantised
        if outcome is not None and asked.format != "onnx":  # another runtime than that which was watched
            outcome = quantising.scored_again(
                outcome, read_exported(draft), Loaded(loaded.model, info), asked.calibrate or "", on_stage
            )
        quantised = {} if outcome is None else dataclasses.asdict(outcome)
        record = dataclasses.replace(record, check=found.to_dict(), quantised=quantised)
        writer.describe(draft, {RECORD: record.to_json()})
        check_kept(read_exported(draft), form, asked.allowed, lowered.draw)
        # The file that names the others comes last.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == draft):
            with whole_file(path.with_name(file.name), error=CheckpointError) as part:
                file.replace(part)
    return Exported(path, info, record, found)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: version(name) for name in ("vision-ssm", "torch", *packages)}


def _place(info: WeightsInfo, asked: Settings) -> Path:
    """Name the file after the weights, beside them; in this folder where they ship with the package or have no file."""
    source = Path(info.source or info.model)
    own = source.suffix and source.is_file() and "pretrained" not in source.parts[-2:]
    name = source.stem if source.suffix else info.model
    return (source.parent if own else Path()) / f"{name}{asked.suffix}"
