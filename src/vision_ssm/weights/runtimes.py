"""What executes exported files: one class for each format.

| format   | named        | executed by                |
|----------|--------------|----------------------------|
| onnx     | NAME.onnx    | onnxruntime, on the CPU    |
| openvino | NAME.xml     | openvino, on the CPU       |
| torch    | NAME.pt2     | torch                      |
| aoti     | NAME.pt2     | torch, as it was compiled  |
"""

from __future__ import annotations

import importlib
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.weights.shipped import pair_in

__all__ = [
    "ENTRIES",
    "MICROSOFT",
    "OnnxRuntime",
    "Runtime",
    "extra_in",
    "first_line",
    "needed",
    "open_runtime",
    "runtime_of",
    "torch_program",
]

EXTRA = "the extra 'export' (pip install 'vision-ssm[export]')"

OPERATORS = "vision_ssm.ops"
"""Module that registers this library's operators with torch."""

COMPILED, LEVELS = "/data/aotinductor/", ("DEFAULT", "AVX2", "AVX512")  # of processors, each with those before it

ENTRIES = ("vision_ssm", "vision_ssm_export")
"""Names of the entries in the metadata of exported files, see `vision_ssm.weights.exported`."""

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

LACKING = {
    rf"{MICROSOFT}:(\w+)\S* is not a registered": f"has no operator {{}} of {MICROSOFT}; export the model again with "
    "--target portable, or install a newer onnxruntime",
    r"No Op registered for (\w+)": "has no operator {}; install a newer onnxruntime",
    r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)": "knows opsets of {1} up to {2}, and "
    "the file has {0}; install a newer onnxruntime",
    r"IR version: (\d+), max supported IR version: (\d+)": "reads versions of the format up to {1}, and the file has "
    "{0}; install a newer onnxruntime",
}
"""What ONNX Runtime says where a file asks for more than it has, and what there is to do."""


class Runtime(Protocol):
    """An opened file.

    Attributes:
        metadata: what the file says of itself, text by name.
    """

    metadata: dict[str, str]

    def __init__(self, path: Path) -> None:
        """Open a file. Raises CheckpointError where it cannot be, ConfigError where a package is missing."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for images float32 [B, C, H, W], in the file's order."""


class OnnxRuntime:
    """Runs a file in ONNX format with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings tell of shapes that are merged, which is no news
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each of the runtime's own kinds derives from it alone
            advice = _advice(str(error))
            told = f"version {runtime.__version__} {advice}." if advice else first_line(error)
            raise CheckpointError(f"onnxruntime cannot open {str(path)!r}: {told}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        return _tensors(self._session.run(None, {self._input: images.numpy()}))


class OpenVino:
    """Runs a pair of files of OpenVINO, NAME.xml and NAME.bin, in float32 with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        openvino = needed("openvino")
        # Otherwise processors that have bfloat16 would take it.
        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        core = openvino.Core()
        try:
            model = core.read_model(path)
            self._compiled = core.compile_model(model, "CPU", how)
        except RuntimeError as error:
            raise CheckpointError(f"openvino cannot open {str(path)!r}: {first_line(error)}") from error
        said: Any = model.get_rt_info()
        texts = {str(name): getattr(value, "value", None) for name, value in said.items()}
        self.metadata = {name: text for name, text in texts.items() if isinstance(text, str)}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        found = self._compiled(images.numpy())
        return [torch.from_numpy(found[output].copy()) for output in self._compiled.outputs]


class TorchProgram:
    """Runs a program that `torch.export` saved."""

    def __init__(self, path: Path) -> None:
        program, self.metadata = torch_program(path)
        self._module = program.module()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        with torch.no_grad():
            return list(self._module(images))


def torch_program(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """Open a program of torch, and what it says of itself.

    Raises:
        CheckpointError: it cannot be opened.
    """
    said = dict.fromkeys(ENTRIES, "")
    try:
        program = torch.export.load(path, extra_files=said)
    except Exception as error:  # a damaged archive is answered by anything
        raise CheckpointError(f"torch cannot open {str(path)!r}: {first_line(error)}") from error
    return program, {name: text for name, text in said.items() if text}


class AotiPackage:
    """Runs a library that AOTInductor compiled, on processors that have the instructions it was compiled for."""

    def __init__(self, path: Path) -> None:
        importlib.import_module(OPERATORS)  # packages may call them
        try:
            with zipfile.ZipFile(path) as archive:
                held = archive.namelist()
                said = extra_in(held, ENTRIES)
                self.metadata = {name: archive.read(place).decode() for name, place in said.items() if place in held}
            self._run = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # a damaged archive is answered by anything
            raise CheckpointError(f"torch cannot open {str(path)!r}: {first_line(error)}") from error
        needs = str(self._run.loader.get_metadata().get("AOTI_CPU_ISA", "")).split(" ")[0]
        has = torch.backends.cpu.get_cpu_capability()
        if needs in LEVELS and has in LEVELS and LEVELS.index(needs) > LEVELS.index(has):
            raise CheckpointError(
                f"{str(path)!r} was compiled for processors with {needs}, this one has {has}; export it again here."
            )

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        with torch.no_grad():
            return list(self._run(images.contiguous()))


def torch_file(path: Path) -> Runtime:
    """Open a program of torch, or a package of AOTInductor: their names end alike."""
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any(COMPILED in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        compiled = False
    return AotiPackage(path) if compiled else TorchProgram(path)


SUFFIXES: dict[str, Callable[[Path], Runtime]] = {".onnx": OnnxRuntime, ".xml": OpenVino, ".pt2": torch_file}
"""What opens files of a suffix."""


def runtime_of(path: str | Path) -> Callable[[Path], Runtime] | None:
    """Return what opens a file, by its name, or the folder of a pair; None for what is no exported file."""
    return SUFFIXES.get(_file(path).suffix.lower())


def open_runtime(path: str | Path) -> Runtime:
    """Open an exported file, or the folder of a pair of OpenVINO's.

    Raises:
        CheckpointError: there is no such file, it is none, or it is damaged; ConfigError: a package is missing.
    """
    kind = runtime_of(path)
    if kind is None:
        raise CheckpointError(f"an exported file ends in {' or '.join(SUFFIXES)}, got {str(path)!r}.")
    if not Path(path).exists():
        raise CheckpointError(f"cannot open exported file {str(path)!r}: No such file or directory.")
    return kind(_file(path))


def _file(path: str | Path) -> Path:
    return pair_in(path) or Path(path)


def needed(package: str) -> ModuleType:
    """Import a package of the extra. Raises ConfigError where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"exported models need {EXTRA}: {package} is missing ({error}).") from error


def extra_in(entries: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Return where extra files lie in one of torch's archives, by their names, from the list of what it holds."""
    root = entries[0].partition("/")[0]
    return {name: f"{root}/extra/{name}" for name in names}


def first_line(error: BaseException) -> str:
    """Say in one line what a runtime answers in many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _advice(told: str) -> str:
    """Say what to do about a file for another ONNX Runtime than this one; nothing about any other trouble."""
    found = ((re.search(pattern, told), advice) for pattern, advice in LACKING.items())
    return next((advice.format(*match.groups()) for match, advice in found if match), "")


def _tensors(arrays: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]
