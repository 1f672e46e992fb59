"""Print constraints with torch, torchvision and timm at their lower bounds, the rest as in constraints.txt.

Run by `make test-oldest`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT_LOWER_BOUND = ("torch", "torchvision", "timm")
CHOSEN_BY_TORCH = ("triton", "nvidia-", "cuda-")  # each torch asks for its own versions of these


def main() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(requirement.split(">=") for requirement in requirements)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name = re.split("==", line)[0]
        if name not in AT_LOWER_BOUND and not name.startswith(CHOSEN_BY_TORCH):
            print(line)
    for name in AT_LOWER_BOUND:
        print(f"{name}=={bounds[name]}")


if __name__ == "__main__":
    main()
