"""Small segmentors from scratch at equal budget: ours beside timm's, the same head, images, updates and augmentation.

    python benchmarks/segmentation.py path/to/camvid --output results/segmentation_camvid.json --epochs 30

Every run is the command ``vision-ssm train`` in a process of its own with the recipe `segmentation_nano`, or the one
that ``--recipe`` names; only the backbone differs. Finished runs in the output file are kept and interrupted ones are
resumed, as long as the run folder stays. Times are those of training updates as the log has them, so run this on an
otherwise idle machine; one epoch (``--epochs 1``, another output) is enough for them.

Whole scenes take long to read for one crop; ``--cut 384`` cuts the training images, not those that are evaluated, into
pieces of about that side first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results_file import provenance, write


@dataclass(frozen=True)
class Peer:
    """A backbone that the head is put on, by its registered name and its options, and what is on the disk for it."""

    model: str
    options: dict[str, Any]
    about: str
    settings: tuple[str, ...] = ()


OF_A_COLUMN = ("--head.last_norm", "true")  # its last map grows with depth, and is as it is read by a classifier then
VIT = {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "class_token": False, "global_pool": ""}
PEERS = {
    "vim": Peer(
        "vim_nano",
        {"patch_size": 8, "class_token": "none", "global_pool": "avg"},
        "vim_nano, patches of 8",
        OF_A_COLUMN,
    ),
    "vmamba": Peer("vmamba_nano", {"patch_size": 4, "embed_dim": 48}, "vmamba_nano, patches of 4, 48 channels wide"),
    "resnet18": Peer("resnet18", {}, "ResNet-18"),
    "vit": Peer(
        "vit_tiny_patch16_224",
        {**VIT, "dynamic_img_size": True, "dynamic_img_pad": True},
        "ViT of vim_nano's size, patches of 8",
        OF_A_COLUMN,
    ),
}
SUFFIX = {"images": ".jpg", "annotations": ".png"}
FIRST_UPDATES = 10  # not timed: memory is taken from the system, kernels are chosen


def cut(data: Path, side: int, folder: Path) -> Path:
    """Return a folder like ``data`` whose training images and masks are cut into pieces of about ``side`` pixels."""
    for kind, suffix in SUFFIX.items():
        (folder / kind / "train").mkdir(parents=True)
        (folder / kind / "val").symlink_to((data / kind / "val").resolve())
        for path in sorted((data / kind / "train").iterdir()):
            with Image.open(path) as opened:
                rows, columns = (np.linspace(0, n, max(round(n / side), 1) + 1).astype(int) for n in opened.size[::-1])
                for i, (top, bottom) in enumerate(pairwise(rows)):
                    for j, (left, right) in enumerate(pairwise(columns)):
                        place = folder / kind / "train" / f"{path.stem}_{i}_{j}{suffix}"
                        opened.crop((left, top, right, bottom)).save(place, quality=95)
    shutil.copy(data / "classes.json", folder)
    return folder


def run(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train one segmentor to the end and return what its log and the system say about it."""
    peer = PEERS[name]
    place = folder / name
    command = [sys.executable, "-m", "vision_ssm", "train"]
    if (place / "log.jsonl").exists():
        command += ["--resume", str(place)]
    else:
        command += [
            options.data,
            "--recipe",
            options.recipe,
            "--model",
            peer.model,
            "--run.output",
            str(folder),
            "--run.name",
            name,
        ]
        command += ["--model.options", json.dumps(peer.options), "--schedule.epochs", str(options.epochs)]
        command += [*peer.settings, *options.settings]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training of {name} ended with status {os.waitstatus_to_exitcode(status)}")
    log = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    started = next(event for event in log if event["event"] == "run_started")
    finished = next(event for event in log if event["event"] == "finished")
    steps = [event for event in log if event["event"] == "step_done"][FIRST_UPDATES:]
    seconds = [started["images_per_update"] / step["images_per_second"] for step in steps]
    return {
        "name": name,
        "about": peer.about,
        "parameters": started["parameters"],
        "updates": finished["updates"],
        "images_per_update": started["images_per_update"],
        "milliseconds_per_update": round(1000 * statistics.median(seconds), 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
        "minutes": round(finished["seconds"] / 60, 1),
        "best": finished["best_scores"],
        "best_epoch": finished["best_epoch"],
        "curve": [
            [event["epoch"], (event["ema_scores"] or event["scores"])["miou"]]
            for event in log
            if event["event"] == "epoch_done" and (event["ema_scores"] or event["scores"])
        ],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    lines = ["| backbone | parameters | updates | ms per update | peak MiB | mIoU % | pixel accuracy % |"]
    lines.append("|---|---|---|---|---|---|---|")
    for found in runs:
        lines.append(
            f"| {found['about']} | {found['parameters'] / 1e6:.2f} M | {found['updates']} | "
            f"{found['milliseconds_per_update']:.0f} | {found['peak_memory_mib']} | "
            f"{100 * found['best']['miou']:.1f} | {100 * found['best']['aacc']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the results after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("results/segmentation_camvid.json"))
    parser.add_argument("--recipe", default="segmentation_nano")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--folder", type=Path, default=Path("runs/segmentation"), help="where the runs are kept")
    parser.add_argument("--cut", type=int, metavar="SIDE", help="cut training images into pieces of about this side")
    parser.epilog = "What follows -- are settings of every run, such as --model.img_size 224."
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.settings = sys.argv[end + 1 :]

    report: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
    typed = " ".join(sys.argv[1:]).replace(options.data, Path(options.data).name)
    report |= provenance(f"python benchmarks/segmentation.py {typed}")
    if options.cut:
        pieces = options.folder / f"pieces_of_{options.cut}"
        options.data = str(pieces if pieces.exists() else cut(Path(options.data), options.cut, pieces))
    done = {found["name"] for found in report["runs"]}
    for name in options.models:
        if name not in done:
            report["runs"].append(run(name, options.folder, options))
            write(options.output, report)
    print(table(report["runs"]))


if __name__ == "__main__":
    main()
