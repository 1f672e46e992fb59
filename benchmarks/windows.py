"""Objects missed and found twice: large images in one pass, in windows that overlap, and shrunk.

    vision-ssm train path/to/aerial_cars --recipe detection_nano --run.name cars
    vision-ssm train path/to/aerial_cars --recipe detection_nano --run.name cars640 \\
        --data.short_side 640 --data.long_side 640
    python benchmarks/windows.py runs/cars/best.safetensors path/to/aerial_cars --window 640 --shrink 640 \\
        --shrunk-weights runs/cars640/best.safetensors --output results/windows_aerial_cars.json

Of the finds from a score of 0.3 on, the surest first, each takes the free object that it covers best, if their IoU is
at least 0.5. Objects that are left were missed; a find that covers a taken object that far has found it twice; the
others are wrong. Classes do not count here. AP50, AP and AP by COCO's sizes are those of `vision-ssm evaluate`; null
where there is no object of a size, and of shrunk images by their sizes there. "shrunk to" is the model of the first row
on shrunk copies, "learned shrunk" another model, which resizes the images itself as it did in training.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results_file import provenance, write

import vision_ssm
from vision_ssm.tasks.detection.coco_scores import Seen
from vision_ssm.tasks.detection.meter import CONFIDENT, box_overlaps

MATCHED = 0.5
ONLY = "train"  # what data of one part call it
SCORES = ("ap50", "ap", "ap_small", "ap_medium", "ap_large")


def counted(seen: Seen) -> np.ndarray:
    """Objects, missed, found twice and wrong finds of an image."""
    sure = seen.scores >= CONFIDENT
    overlaps = box_overlaps(seen.found[sure], seen.boxes)
    free = ~seen.crowd
    twice = wrong = 0
    for row in overlaps:
        best = int(np.where(free, row, -1).argmax()) if len(row) else -1
        if best >= 0 and free[best] and row[best] >= MATCHED:
            free[best] = False
        elif len(row) and row.max() >= MATCHED:
            twice += 1
        else:
            wrong += 1
    return np.array([int((~seen.crowd).sum()), int(free.sum()), twice, wrong])


def shrunk(data: Path, split: str, side: int, folder: Path) -> Path:
    """A copy of one split of COCO data, its only one, whose images have ``side`` as their longer side."""
    told = json.loads((data / "annotations" / f"{split}.json").read_text())
    (folder / "annotations").mkdir(parents=True)
    (folder / ONLY).mkdir()
    factors = {}
    for image in told["images"]:
        factors[image["id"]] = factor = min(1.0, side / max(image["width"], image["height"]))
        with Image.open(data / split / image["file_name"]) as opened:
            size = round(opened.width * factor), round(opened.height * factor)
            small = opened.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        image["file_name"] = f"{image['id']}.png"  # as JPEG again it would lose more than size
        small.save(folder / ONLY / image["file_name"])
        image["width"], image["height"] = size
    for found in told["annotations"]:
        factor = factors[found["image_id"]]
        found["bbox"] = [value * factor for value in found["bbox"]]
        found["area"] *= factor**2
        found.pop("segmentation", None)
    (folder / "annotations" / f"{ONLY}.json").write_text(json.dumps(told))
    return folder


def row(way: str, weights: str, data: Path, split: str | None, **options: Any) -> dict[str, Any]:
    """Count and score one way."""
    found = vision_ssm.evaluate(weights, data, split, **options)
    objects, missed, twice, wrong = np.sum([counted(seen) for seen in found.meter.seen.values()], axis=0).tolist()
    scores = {name: None if math.isnan(value := found.scores[name]) else round(value, 4) for name in SCORES}
    return {"way": way, "objects": objects, "missed": missed, "twice": twice, "wrong": wrong, **scores}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| | objects | missed | found twice | wrong | AP50 | AP |", "|---" * 7 + "|"]
    for each in rows:
        counts = [str(each[name]) for name in ("objects", "missed", "twice", "wrong")]
        lines.append(f"| {each['way']} | {' | '.join(counts)} | {each['ap50']:.1%} | {each['ap']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Go every way, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data", type=Path, help="COCO data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--window", type=int, nargs="*", default=[640])
    parser.add_argument("--shrink", type=int, help="longer side of shrunk images")
    parser.add_argument("--shrunk-weights", help="a model that learned from images that it shrinks itself")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = [row("one pass", options.weights, options.data, options.split, window="none")]
    for window in options.window:
        rows.append(row(f"windows of {window}", options.weights, options.data, options.split, window=window))
    if options.shrink:
        with tempfile.TemporaryDirectory() as folder:
            small = shrunk(options.data, options.split, options.shrink, Path(folder) / "data")
            rows.append(row(f"shrunk to {options.shrink}", options.weights, small, None, window="none"))
    if options.shrunk_weights:
        rows.append(row("learned shrunk", options.shrunk_weights, options.data, options.split, window="none"))
    print(table(rows))
    if options.output:
        typed = " ".join(sys.argv[1:]).replace(str(options.data), options.data.name)
        write(options.output, provenance(f"python benchmarks/windows.py {typed}") | {"rows": rows})


if __name__ == "__main__":
    main()
