"""Run the targets for some seconds each: python -m fuzz --seconds 70 --seed 1 [TARGET ...].

Every batch runs in a process of its own, which writes the seed of a case before it runs it: a crash names its case, and
`python -m fuzz --case SEED TARGET` runs that one alone.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path

from fuzz.faults import Fault

TARGETS = ("operators", "images", "weights", "folders")
BATCH = 200  # cases to a process
MOST_MEMORY = 2**30  # bytes that one case may add to the process
MOST_SECONDS = 120  # of a batch, where cases are counted
LONGEST_CASE = 60  # seconds, with the start of the process
MOST_FAULTS = 100  # that a process tells by how it ends


def main() -> int:
    """Return 0 if no promise was broken, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=70, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, help="of each target, rather than seconds")
    parser.add_argument("--case", type=int, help="the seed of one case to run here")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        parser.error(f"TARGET must be of {', '.join(TARGETS)}, got {unknown[0]!r}")
    if options.case is not None:
        return run_here(targets[0], [options.case])
    if options.batch is not None:
        seeds = range(options.batch, options.batch + (options.cases or BATCH))
        return run_here(targets[0], seeds, Path(os.environ["FUZZ_NOTE"]), options.seconds)
    return sum(run_target(target, options, len(targets)) for target in targets) > 0


def run_here(target: str, seeds: range | list[int], note: Path | None = None, seconds: float = float("inf")) -> int:
    """Run cases in this process, until the time is up; return how many broke a promise."""
    until = time.monotonic() + seconds
    warnings.simplefilter("ignore")
    case = import_module(f"fuzz.{target}").case
    broken = 0
    for seed in seeds:
        if time.monotonic() >= until:
            break
        if note is not None:
            note.write_text(str(seed), encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            try:
                before = peak_bytes()
                case(random.Random(f"{target} {seed}"), Path(folder))
                if (taken := peak_bytes() - before) > MOST_MEMORY:
                    raise Fault(f"it took {taken:,} bytes of memory")
            except Fault as fault:
                broken += 1
                print(f"{target}, case {seed}: {fault}", flush=True)
    return min(broken, MOST_FAULTS)


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_target(target: str, options: argparse.Namespace, among: int) -> int:
    """Run batches until the time is up, or so many cases; return how many of them failed."""
    until, failed, cases = time.monotonic() + options.seconds / among, 0, 0
    first = options.seed * 1_000_000
    while options.cases is None or cases < options.cases:
        size = BATCH if options.cases is None else min(BATCH, options.cases - cases)
        left = MOST_SECONDS if options.cases is not None else until - time.monotonic()
        if left <= 0:
            break
        done, fault = run_batch(target, first + cases, size, left)
        cases += done
        failed += fault
    print(f"{target}: {cases} cases from seed {first}, {failed} batches with faults", flush=True)
    return failed


def run_batch(target: str, first: int, size: int, seconds: float) -> tuple[int, int]:
    """Run a batch in a child; return how many cases were begun, and 1 if a promise was broken, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "seed"
        command = [sys.executable, "-m", "fuzz", target, "--batch", str(first), "--cases", str(size)]
        environment = os.environ | {"FUZZ_NOTE": str(note)}
        with subprocess.Popen([*command, "--seconds", str(seconds)], env=environment) as child:
            try:
                code = child.wait(seconds + LONGEST_CASE)
            except subprocess.TimeoutExpired:
                child.kill()
                code = None
        last = int(note.read_text(encoding="utf-8")) if note.exists() else first
    if code is None:
        print(f"{target}, case {last}: hangs", flush=True)
    elif code < 0 or code > MOST_FAULTS:
        print(f"{target}, case {last}: the process ended with {code}", flush=True)
    return last - first + 1, int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
