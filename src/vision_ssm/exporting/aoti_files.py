"""A model compiled for this machine: a package of torch's AOTInductor (.pt2).

The program is turned into C++ and that into a library for this processor, weights included. With the target
``vision-ssm`` scans and gated linear attention stay this library's operators, which have to be loaded where the package
is opened; with ``portable`` they are summed up by doubling, as in `vision_ssm.exporting.torch_files`.

Source: torch, `torch._inductor.aoti_compile_and_package`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from vision_ssm.errors import ConfigError
from vision_ssm.exporting.lowering import Lower, Written
from vision_ssm.exporting.programs import program, traced
from vision_ssm.exporting.torch_files import gla_steps, scan_steps
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import extra_in, first_line

__all__ = ["describe", "write"]

CONFIG = {"cpp.dynamic_threads": True}
"""As many threads as torch has when it runs, not those of the export."""


def write(
    path: Path,
    form: Form,
    images: Tensor,
    *,
    dynamic: Sequence[str],
    step: int,
    target: str,
    lower: Lower | None = None,
) -> Written:
    """Compile a model in float32, without a description; ``lower`` is for formats that have other precisions.

    Raises:
        ConfigError: the model cannot be traced, or there is no C++ compiler.
    """
    if target == "portable":
        found = program(form, images, dynamic, step, scan_steps, gla_steps)
    else:
        found = traced(form, images, dynamic, step)
    try:
        torch._inductor.aoti_compile_and_package(found, package_path=str(path), inductor_configs=CONFIG)
    except (InvalidCxxCompiler, InductorError) as error:
        raise ConfigError(
            f"AOTInductor needs a C++ compiler that works ({first_line(error)}); install g++, or name one in CXX."
        ) from error
    return Written(())


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into a package, in place of what it said before, where torch looks for extra files."""
    again = path.with_name(path.name + ".part")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(again, "w", zipfile.ZIP_STORED) as after:
        said = extra_in(before.namelist(), entries)
        places = {said[name]: text for name, text in entries.items()}
        for entry in before.infolist():
            if entry.filename not in places:
                after.writestr(entry.filename, before.read(entry))
        for place, text in places.items():
            after.writestr(place, text)
    again.replace(path)
