"""``vision-ssm data``: what training would stumble over in a data set, data sets as shards, and shards of others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision_ssm.cli.arguments import whole_number
from vision_ssm.cli.console import note, print_json, print_table, progress_bar, say
from vision_ssm.errors import ConfigError

if TYPE_CHECKING:
    from vision_ssm.analysis.data_check import DataReport

NAME = "data"
SUMMARY = "Look through a data set (check), write it as tar files (pack), or take tar files of others (index)."
EXAMPLES = """check decodes every image once, as training would, with what belongs to it, and tells of unreadable files,
classes, sizes and duplicates. The exit code is 1 where something was found that should be looked at.

pack writes tar files in the layout of WebDataset, and lists of what is where in them. Training and evaluation take
their folder, or its address, in the place of the data.

index writes such lists beside tar files of others, images with .cls files, whose names say train, val or test.

examples:
  vision-ssm data check images/
  vision-ssm data check scenes/ --task segmentation --json
  vision-ssm data pack images/ --shards packed/
  vision-ssm data index imagenet-wds/ --classes imagenet_classes.txt"""
SHOWN = 20  # files of a kind on the terminal; JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=("check", "pack", "index"), help="what to do")
    parser.add_argument(
        "data", metavar="DATA", help="folder of data for a task, or the name of a data set; for index, of tar files"
    )
    parser.add_argument("--task", metavar="NAME", help="that the data are for; default: the one they look like")
    parser.add_argument(
        "--workers", type=whole_number(1), default=2, metavar="N", help="threads that decode in a check (default: 2)"
    )
    parser.add_argument("--shards", type=Path, metavar="DIR", help="folder for what pack writes")
    parser.add_argument(
        "--shard-mb", type=whole_number(1), default=256, metavar="N", help="least size of a tar file (default: 256)"
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="for index: names of the classes, a JSON list or one in a line"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Print what was found, or pack; 1 when there are problems."""
    from vision_ssm.tasks.registry import task_of

    if options.action == "index":
        return _index(options)
    if options.classes is not None:
        raise ConfigError("--classes names what index finds; data for a task know their classes.")
    task = options.task or task_of(options.data)
    if options.action == "pack":
        return _pack(options, task)
    if options.shards is not None:
        raise ConfigError("--shards is where pack writes; a check writes nothing.")
    from vision_ssm.analysis import check_data

    with progress_bar("looking", shown=not options.json) as on_progress:
        found = check_data(options.data, task, workers=options.workers, on_progress=on_progress)
    if options.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 1 if found.problems else 0


def _pack(options: argparse.Namespace, task: str) -> int:
    if options.shards is None:
        raise ConfigError("pack needs a folder to write to: --shards DIR.")
    from vision_ssm.tasks.packing import pack

    with progress_bar("packing", shown=not options.json) as on_progress:
        counts = pack(options.data, options.shards, task, shard_bytes=options.shard_mb * 2**20, on_progress=on_progress)
    if options.json:
        print_json({"folder": str(options.shards), "task": task, "images": counts})
    else:
        told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        say(f"packed for {task}: {told} images in {options.shards}")
    return 0


def _index(options: argparse.Namespace) -> int:
    from vision_ssm.data.labelled.tars import index_tars
    from vision_ssm.tasks.registry import DEFAULT

    if options.shards is not None or options.task not in (None, DEFAULT):
        raise ConfigError(f"index writes beside tar files for {DEFAULT}: leave --shards and other tasks out.")
    with progress_bar("indexing", shown=not options.json) as on_progress:
        counts = index_tars(options.data, DEFAULT, options.classes, on_progress)
    if options.json:
        print_json({"folder": options.data, "task": DEFAULT, "images": counts})
    else:
        told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        say(f"indexed for {DEFAULT}: {told} images in {options.data}")
        if not counts.keys() & {"val", "test"}:
            note("no part is held out, which training needs: call one of the files ...val....tar, and index again.")
    return 0


def _print(found: DataReport) -> None:
    rows = []
    for part in found.splits:
        sizes = " / ".join(f"{width} x {height}" for width, height in part.sizes)
        rows.append((part.split, f"{part.images:,}", f"{len(part.unreadable):,}", sizes))
    columns = ("part", "images", "unreadable", "width x height: smallest / middle / largest")
    print_table(f"{found.data}, for {found.task}", columns, rows, numeric=("images", "unreadable"))
    names = list(dict.fromkeys(name for part in found.splits for name in part.classes))
    if names:
        splits = [part.split for part in found.splits]
        shares = [_shares(part.amounts) for part in found.splits]
        table = [
            (name, *(f"{part.classes.get(name, 0):,} ({share.get(name, 0):.1%})"
                     for part, share in zip(found.splits, shares, strict=True)))
            for name in names
        ]  # fmt: skip
        print_table(f"Images with each class (share of the {found.counted})", ("class", *splits), table, numeric=splits)
    listed = [(path, reason) for part in found.splits for path, reason in part.unreadable]
    listed += [(paths[0], f"shows the same as {', '.join(paths[1:])}") for p in found.splits for paths in p.duplicates]
    listed += [fault for part in found.splits for fault in (*part.faults, *part.asides)]
    listed += [(path, f"in {split}; in {other} as {twin}") for split, path, other, twin in found.shared]
    if listed:
        print_table("Files", ("file", ""), listed[:SHOWN])
        if len(listed) > SHOWN:
            say(f"... and {len(listed) - SHOWN:,} more; --json lists all")
    for problem in found.problems:
        say(problem)
    if not found.problems:
        say("Nothing was found that training would stumble over.")


def _shares(amounts: dict[str, int]) -> dict[str, float]:
    total = max(sum(amounts.values()), 1)
    return {name: amount / total for name, amount in amounts.items()}
