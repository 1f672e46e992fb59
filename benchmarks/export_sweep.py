"""Exports of every family: the error of each, how many answers agree, seconds and sizes. No figure of speed.

    python benchmarks/export_sweep.py --output results/export_errors.json
    python benchmarks/export_sweep.py --models vim_nano --formats onnx

The smallest published model of each family and its nano, at their own sizes with random weights, and a segmentor and a
detector of the shipped weights; for ONNX Runtime and OpenVINO, with everything fixed and with everything open that may
be. Errors are those of the check that every export goes through, over all sizes and batches that the file takes. An
export that fails is a row that says why. Rows that a results file has already are not made again; the table of
docs/export.md is printed from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from exported import PACKAGES, built
from results_file import provenance, write

import vision_ssm
from vision_ssm.errors import VisionSSMError
from vision_ssm.exporting import FORMATS
from vision_ssm.models.registry import create_model
from vision_ssm.weights.files import Loaded

OPEN = {
    "vim_tiny_patch16_224": "batch,size",
    "vim_nano": "batch,size",
    "vmamba_tiny_v0": "batch,size",
    "vmamba_nano": "batch,size",
    "efficientvmamba_tiny": "batch,size",
    "efficientvmamba_nano": "batch,size",
    "vig_tiny": "batch,size",
    "vig_nano": "batch,size",
    "vig_h_tiny": "batch,size",
    "aerial_nano": "batch",
    "nuclei_nano": "",
}
"""What is exported, and what its files may leave open."""

SHIPPED = ("aerial_nano", "nuclei_nano")


def opened(name: str) -> Loaded:
    """Shipped weights, or a classifier with random ones for images of its own size."""
    if name in SHIPPED:
        return vision_ssm.load_model(name, device="cpu")
    with torch.device("meta"):
        config: Any = create_model(name).pretrained_cfg
    return built(name, config["input_size"][-1])


def row(name: str, loaded: Loaded, format: str, dynamic: str) -> dict[str, Any]:
    """One export and what came of it."""
    about: dict[str, Any] = {"model": name, "format": format, "dynamic": dynamic}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{FORMATS[format]}"
        started = time.perf_counter()
        try:
            found = vision_ssm.export(loaded, path, format=format, dynamic=dynamic.split(",") if dynamic else ())
        except VisionSSMError as error:
            return {**about, "refused": str(error)}
        spent, files = time.perf_counter() - started, list(Path(folder).iterdir())
        return {
            **about,
            "size": found.record.size,
            "step": found.record.step,
            "cases": [[case.batch, case.height, case.width] for case in found.check.cases],
            "error": found.check.error,
            "agreement": found.check.agreement,
            "export_seconds": round(spent, 1),
            "mib": round(sum(file.stat().st_size for file in files) / 2**20, 1),
        }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| model | format | open | largest error | answers that agree | export, s | MiB |", "|---" * 7 + "|"]
    for each in rows:
        found = (
            [each["refused"], "", "", ""]
            if "refused" in each
            else [
                f"{each['error']:.1e}",
                f"{100 * each['agreement']:.2f} %",
                f"{each['export_seconds']:.0f}",
                f"{each['mib']:.1f}",
            ]
        )
        size = "" if "refused" in each else f", {each['size'][0]}"
        cells = [f"`{each['model']}`{size}", each["format"], each["dynamic"].replace(",", ", ") or "nothing", *found]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Export what is missing, write the results after every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(OPEN), default=list(OPEN))
    parser.add_argument("--formats", nargs="+", choices=("onnx", "openvino"), default=["onnx", "openvino"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    there = bool(options.output) and options.output.exists()
    report: dict[str, Any] = json.loads(options.output.read_text()) if there else {"rows": []}
    report |= provenance("python benchmarks/export_sweep.py") | {"threads": options.threads}
    report["runtimes"] = {package: version(package) for package in PACKAGES}
    done = {(each["model"], each["format"], each["dynamic"]) for each in report["rows"]}
    for name in options.models:
        asked = [(format, dynamic) for format in options.formats for dynamic in dict.fromkeys(("", OPEN[name]))]
        left = [(format, dynamic) for format, dynamic in asked if (name, format, dynamic) not in done]
        if not left:
            continue
        loaded = opened(name)
        for format, dynamic in left:
            report["rows"].append(row(name, loaded, format, dynamic))
            print(table(report["rows"][-1:]), flush=True)
            if options.output:
                write(options.output, report)
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
