"""Weights in INT8 on data of their own: what the score was, what it is, and how far what is found moves.

    python benchmarks/int8.py nuclei_nano PATH/nuclei --img-size 256 --output results/int8.json

The export is that of `vision-ssm export WEIGHTS --precision int8 --calibrate DATA`: ranges from images of the training
part, the score of the held-out part before and after, and a check against the model on images of the ranges. For
detectors the check's error is one minus the mean IoU of confident finds with those of the other, its agreement the
share of them that have one of an IoU of 0.5 or more. Rows that a results file has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results_file import provenance, write

import vision_ssm

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def told(stage: str, done: int, total: int) -> None:
    """Say how far it is, now and then."""
    if done % max(total // 4, 1) == 0:
        print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


def measured(weights: str, data: Path, side: int | None) -> dict[str, Any]:
    """One model: its scores, its products, its files."""
    with tempfile.TemporaryDirectory() as folder:
        exact, whole = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        vision_ssm.export(weights, exact, img_size=side)
        found = vision_ssm.export(weights, whole, precision="int8", calibrate=data, img_size=side, on_stage=told)
        mib = {path.stem: round(path.stat().st_size / 2**20, 2) for path in (exact, whole)}
    said = dict(found.record.quantised)
    layers = said.pop("layers")
    return {
        "weights": weights,
        "data": data.name,
        "size": found.record.size,
        **said,
        "products": len(layers),
        "products_in_float": [layer["name"] for layer in layers if layer["kept"]],
        "check": {"error": found.check.error, "agreement": found.check.agreement},
        "mib": mib,
    }


def main() -> None:
    """Measure one model and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data", type=Path)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    there = bool(options.output) and options.output.exists()
    report: dict[str, Any] = json.loads(options.output.read_text()) if there else {"rows": []}
    if options.weights in {row["weights"] for row in report["rows"]}:
        print(f"{options.output} has a row of {options.weights}")
        return
    row = measured(options.weights, options.data, options.img_size)
    size = "" if options.img_size is None else f" --img-size {options.img_size}"
    command = f"python benchmarks/int8.py {options.weights} PATH/{options.data.name}{size} --threads {options.threads}"
    report["rows"].append(row | provenance(command))
    report["runtimes"] = {package: version(package) for package in PACKAGES}
    print(json.dumps(row, indent=1))
    if options.output:
        write(options.output, report)


if __name__ == "__main__":
    main()
