"""Finds of a detector in scenes scored as points on the ground: which lie within so many metres of a true one.

    vision-ssm predict runs/trees scenes/val/*.tif --score 0.02 --export geojson=found/val
    vision-ssm predict runs/trees scenes/train/*.tif --score 0.02 --export geojson=found/train
    python benchmarks/points.py found/val scenes/val --chosen-on found/train scenes/train --within 6 \\
        --output results/points_naip_trees.json

Truth is a GeoJSON file of points beside each scene, in the same coordinates as the finds (metres). Per scene the finds
take, the surest first, the nearest true point that is still free. The score from which finds count is the one with the
best F1 on the scenes of ``--chosen-on``, so that it is not fitted to the scenes that are scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results_file import provenance, write

LEAST = 1e-9  # of a find, so that precision without any is 0 rather than nothing


@dataclass(frozen=True)
class Finds:
    """The finds of all scenes of a folder, the surest first: scores, and which of them are of a true point."""

    scores: np.ndarray
    true: np.ndarray
    points: int

    def at(self, score: float) -> dict[str, float]:
        """Precision, recall and F1 of the finds from a score on."""
        counted = self.scores >= score
        hits = int((self.true & counted).sum())
        precision, recall = hits / max(int(counted.sum()), LEAST), hits / self.points
        return {"precision": precision, "recall": recall, "f1": 2 * hits / (int(counted.sum()) + self.points)}

    def average_precision(self) -> float:
        """Area under the precision that is reached at each recall or beyond it."""
        hits = np.cumsum(self.true)
        best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        return float(best[self.true].sum() / self.points)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the features of a GeoJSON file."""
    features: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["features"]
    return features


def matched(found: Path, truth: Path, within: float) -> Finds:
    """Match the finds of each file in one folder with the points of its namesake in the other."""
    scores, true, points = [], [], 0
    files = sorted(found.glob("*.geojson"))
    if not files:
        raise SystemExit(f"{found} holds no .geojson files: predict into it with --export geojson={found}")
    for path in files:
        free = np.array([feature["geometry"]["coordinates"][:2] for feature in read(truth / path.name)]).reshape(-1, 2)
        points += len(free)
        finds = sorted((feature["properties"] for feature in read(path)), key=lambda each: -each["score"])
        for find in finds:
            far = np.hypot(free[:, 0] - find["x"], free[:, 1] - find["y"]) if len(free) else np.array([np.inf])
            nearest = int(far.argmin())
            scores.append(find["score"])
            true.append(bool(far[nearest] <= within))
            if true[-1]:
                free = np.delete(free, nearest, axis=0)
    order = np.argsort(-np.array(scores), kind="stable")
    return Finds(np.array(scores)[order], np.array(true, bool)[order], points)


def main() -> None:
    """Score, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="folder of finds, a .geojson file per scene")
    parser.add_argument("truth", type=Path, help="folder of true points, under the same names")
    parser.add_argument("--chosen-on", type=Path, nargs=2, metavar=("FOUND", "TRUTH"), required=True)
    parser.add_argument("--within", type=float, default=6.0, help="metres (default: 6)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    tuning = matched(options.chosen_on[0], options.chosen_on[1], options.within)
    score = max((round(float(each), 2) for each in np.arange(0.02, 1, 0.02)), key=lambda each: tuning.at(each)["f1"])
    scored = matched(options.found, options.truth, options.within)
    result = {"within": options.within, "score": score, "points": scored.points, "finds": len(scored.scores)}
    result |= scored.at(score) | {"average_precision": scored.average_precision(), "on chosen": tuning.at(score)}
    print(
        f"within {options.within:g} m, finds from a score of {score:g}: precision {result['precision']:.1%}, "
        f"recall {result['recall']:.1%}, F1 {result['f1']:.1%} of {scored.points} points; "
        f"average precision {result['average_precision']:.1%}"
    )
    if options.output:
        write(options.output, provenance(f"python benchmarks/points.py {' '.join(sys.argv[1:])}") | result)


if __name__ == "__main__":
    main()
