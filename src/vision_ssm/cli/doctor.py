"""``vision-ssm doctor``: what is installed, which devices there are, and which backend every operator gets on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_ssm.cli.console import note, print_json, print_table

if TYPE_CHECKING:
    from vision_ssm.ops import BackendStatus

NAME = "doctor"
SUMMARY = "Show versions, devices, and which backend every operator gets on each device and why."
EXAMPLES = """examples:
  vision-ssm doctor
  VISION_SSM_BACKEND=chunked vision-ssm doctor
  vision-ssm doctor --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Print the report; 0 when every device has a backend, else 1."""
    from vision_ssm.analysis import environment

    found = environment()
    complete = all(device.chosen for device in found.devices)
    if options.json:
        print_json(found.to_dict())
        return 0 if complete else 1
    print_table("Versions", ("package", "version"), [(k, v or "not installed") for k, v in found.versions.items()])
    machine = [
        ("system", found.system),
        ("processor", found.processor),
        ("cores, threads used", f"{found.cores}, {found.threads}"),
        *found.variables.items(),
    ]
    print_table("Machine", ("", ""), machine)
    if found.kernel["loaded"]:
        rows = [
            ("instruction set", found.kernel["instruction_set"]),
            ("others that run here", ", ".join(found.kernel["runnable"][:-1]) or "none"),
        ]
    else:
        rows = [
            ("missing", found.kernel["reason"]),
            ("so", "scans on the CPU run as torch operations: the same results, slower"),
            ("remedy", "install a C++ compiler (g++ or clang++) and install vision-ssm again"),
        ]
    print_table("Native CPU kernel", ("", ""), rows)
    for device in found.devices:
        print_table(
            f"Scan backends for {device.device} ({device.description})",
            ("backend", "used", "because"),
            [(b.name, "yes" if b.chosen else "no", b.reason) for b in device.backends],
        )
        print_table(
            f"Operators on {device.device}",
            ("operator", "backend", "because", "not the others"),
            [(name, *_row(backends)) for name, backends in device.operators.items()],
        )
        if device.chosen is None:
            note(f"{device.device}: no backend can run; see the reasons above.", mark="", style="bold red")
    return 0 if complete else 1


def _row(backends: Sequence[BackendStatus]) -> tuple[str, str, str]:
    chosen = next((b for b in backends if b.chosen), None)
    others = "; ".join(f"{b.name}: {b.reason}" for b in backends if not b.chosen)
    return ("none", "no backend can run", others) if chosen is None else (chosen.name, chosen.reason, others)
