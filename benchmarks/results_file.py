"""What every results file says of its making, and how it is written: whole or not at all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from vision_ssm.analysis.machine import environment
from vision_ssm.storage import whole_file

MACHINE = ("processor", "cores", "system", "versions", "kernel")


def provenance(command: str) -> dict[str, Any]:
    """Return the command as it was typed, the commit of the working tree, and the machine with its versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = environment().to_dict()
    return {"command": command, "commit": commit or None, "machine": {name: machine[name] for name in MACHINE}}


def write(path: Path, report: dict[str, Any]) -> None:
    """Write ``report`` as JSON to ``path``; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
