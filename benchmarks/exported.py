"""Exported models in their runtimes: Vim-Ti beside DeiT-Ti, errors and times for one image on the CPU.

    python benchmarks/exported.py --output results/exported.json
    python benchmarks/exported.py --sizes 224 --rounds 1

Both are built with random weights and exported by the same call, in standard operators. Contenders of a row:

    torch        the model itself; Vim-Ti through this library's kernel, DeiT-Ti through timm's fused attention
    onnxruntime  the file in ONNX format
    openvino     the same file, read by OpenVINO, told to compute in float32 or in bfloat16
    int8         products with matrices of weights in whole numbers, calibrated on random images

Threads of a runtime spin for a while after a run, in the way of whatever comes next. So each contender has turns of its
own, some runs untimed and then some timed, one right after the other; the turns go round several times, so that a
machine whose speed drifts treats them alike, and the median of all timed runs is kept. An error is the largest one of
the logits over their largest absolute value, against torch in float32, on random images; of INT8 and bfloat16 with
random weights it says how far numbers move and nothing of accuracy. Rows that a results file has already are not
measured again; once it has all, the tables of docs/export.md are printed from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results_file import provenance, write
from torch import Tensor

import vision_ssm
from vision_ssm.analysis.model_cost import build_for_size
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.exporting.quantising import Quantiser
from vision_ssm.weights.files import Loaded, WeightsInfo
from vision_ssm.weights.runtimes import OnnxRuntime, needed

MODELS = {"vim_tiny_patch16_224": "Vim-Ti", "deit_tiny_patch16_224": "DeiT-Ti"}
COLUMNS = {
    "torch, float32": "here, float32",
    "torch, bfloat16": "here, bfloat16",
    "onnxruntime, float32": "ONNX Runtime, float32",
    "openvino, float32": "OpenVINO, float32",
    "openvino, bfloat16": "OpenVINO, bfloat16",
    "onnxruntime, int8": "ONNX Runtime, INT8",
    "openvino, int8": "OpenVINO, INT8",
}
IMAGES = 3  # that errors are of
CALIBRATION = 4  # images
SETTLE = 2  # untimed runs at the start of a turn
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")

Run = Callable[[Tensor], Tensor]


def built(name: str, size: int) -> Loaded:
    """A classifier with random weights for images of that size."""
    torch.manual_seed(0)
    model: Any = build_for_size(name, (size, size)).eval()
    classes = [str(number) for number in range(model.num_classes)]
    prepared = Preprocessing(input_size=(3, size, size))
    return Loaded(model, WeightsInfo(name, {}, "classification", {"class_names": classes}, prepared))


def of_torch(model: Any, dtype: torch.dtype) -> Run:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images.to(dtype))
        return logits.float()

    return run


def of_onnxruntime(path: Path) -> Run:
    runtime = OnnxRuntime(path)
    return lambda images: runtime(images)[0]


def of_openvino(path: Path, precision: str) -> Run:
    core = needed("openvino").Core()
    how = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(path), "CPU", how)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def images(count: int, size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, size, size, generator=generator) for _ in range(count)]


def contenders(loaded: Loaded, size: int, folder: Path, int8: bool) -> tuple[dict[str, Run], dict[str, Any]]:
    """Everything that is timed, and what is known of the export: its seconds, its check and the sizes of files."""
    exact, whole = folder / "float32.onnx", folder / "int8.onnx"
    started = time.perf_counter()
    found = vision_ssm.export(loaded, exact, target="portable")
    about: dict[str, Any] = {
        "export_seconds": round(time.perf_counter() - started, 1),
        "check_error": found.check.error,
    }
    runs = {
        "torch, float32": of_torch(loaded.model, torch.float32),
        "torch, bfloat16": of_torch(built(loaded.info.model, size).model.bfloat16(), torch.bfloat16),
        "onnxruntime, float32": of_onnxruntime(exact),
        "openvino, float32": of_openvino(exact, "f32"),
        "openvino, bfloat16": of_openvino(exact, "bf16"),
    }
    if int8:
        quantiser = Quantiser(exact, images(CALIBRATION, size, seed=1), on_stage=lambda *_: None)
        quantiser.write(whole, list(quantiser.nodes))
        about["products_in_int8"] = len(quantiser.nodes)
        runs |= {"onnxruntime, int8": of_onnxruntime(whole), "openvino, int8": of_openvino(whole, "f32")}
    about["mib"] = {path.stem: round(path.stat().st_size / 2**20, 1) for path in (exact, whole) if path.exists()}
    return runs, about


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def turn(run: Run, image: Tensor, count: int) -> list[float]:
    """Seconds of so many runs, once those before have settled the machine."""
    for _ in range(SETTLE):
        run(image)
    spent = []
    for _ in range(count):
        started = time.perf_counter()
        run(image)
        spent.append(time.perf_counter() - started)
    return spent


def measured(name: str, size: int, rounds: int, count: int, int8: bool) -> dict[str, Any]:
    """Errors and times of one model at one size."""
    loaded = built(name, size)
    with tempfile.TemporaryDirectory() as folder:
        runs, about = contenders(loaded, size, Path(folder), int8)
        given = images(IMAGES, size, seed=2)
        expected = [runs["torch, float32"](image) for image in given]
        errors = {
            each: max(error(run(image), right) for image, right in zip(given, expected, strict=True))
            for each, run in runs.items()
        }
        spent: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(rounds):
            for each, run in runs.items():
                spent[each] += turn(run, given[0], count)
    times = {
        each: {"median": statistics.median(values), "least": min(values), "largest": max(values)}
        for each, values in spent.items()
    }
    return {"model": name, "size": size, **about, "errors": errors, "seconds": times}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: milliseconds, the least of a row in bold, and below them the errors and the export."""
    columns = [each for each in COLUMNS if any(each in row["seconds"] for row in rows)]
    titles = [COLUMNS[each] for each in columns]
    times = ["| ms | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    errors = [
        "| largest error | " + " | ".join(titles[1:]) + " | export, s | file, MiB | in INT8, MiB |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in rows:
        label = f"| {MODELS.get(row['model'], row['model'])}, {row['size']} | "
        spent = {each: 1e3 * row["seconds"][each]["median"] for each in columns if each in row["seconds"]}
        texts = {each: f"**{ms:,.0f}**" if ms == min(spent.values()) else f"{ms:,.0f}" for each, ms in spent.items()}
        times.append(label + " | ".join(texts.get(each, "") for each in columns) + " |")
        found = [f"{row['errors'][each]:.1e}" if each in row["errors"] else "" for each in columns[1:]]
        about = [f"{row['export_seconds']:.0f}", *(str(row["mib"].get(file, "")) for file in ("float32", "int8"))]
        errors.append(label + " | ".join([*found, *about]) + " |")
    return "\n".join([*times, "", *errors])


def main() -> None:
    """Measure what is missing, write the results after every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1248])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender has")
    parser.add_argument("--runs", type=int, default=5, help="that are timed in a turn")
    parser.add_argument(
        "--no-int8",
        dest="int8",
        action="store_false",
        help="leave it out: all runtimes' attention may not fit together",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    there = bool(options.output) and options.output.exists()
    report: dict[str, Any] = json.loads(options.output.read_text()) if there else {"rows": []}
    report |= provenance("python benchmarks/exported.py")
    report |= {"threads": options.threads, "rounds": options.rounds, "runs": options.runs, "settle": SETTLE}
    report["runtimes"] = {package: version(package) for package in PACKAGES}
    done = {(row["model"], row["size"]) for row in report["rows"]}
    for size in options.sizes:
        for name in options.models:
            if (name, size) in done:
                continue
            report["rows"].append(measured(name, size, options.rounds, options.runs, options.int8))
            print(table(report["rows"][-1:]), flush=True)
            if options.output:
                write(options.output, report)
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
