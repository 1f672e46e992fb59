"""Install the wheel of dist/ that fits this machine into an empty environment and make the first prediction with it.

`python .ci/check_wheel.py FOLDER [SITE]` makes it in FOLDER. With SITE, a folder of site-packages, torch
and the other dependencies are taken from there; without, they are installed from the package index. Run by
`make check-wheel`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "from PIL import Image; Image.new('RGB', (60, 45), (90, 140, 200)).save('picture.png')"


def output(folder: Path, *command: str | Path) -> str:
    """Run a command in ``folder``; its standard error stays visible."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def environment(folder: Path, site: str | None) -> Path:
    """Make the environment and return its folder of programs."""
    venv.create(folder, clear=True, with_pip=True)
    names = {"base": str(folder), "platbase": str(folder)}
    scheme = sysconfig.get_preferred_scheme("prefix")
    programs = Path(sysconfig.get_path("scripts", scheme, names))
    python = programs / "python"
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "-q")
    # By name, so that pip itself picks the wheel that fits; first without an index, which could have the version, too.
    output(ROOT, *pip, "--no-index", "--no-deps", "--find-links", "dist", "vision-ssm")
    if site is None:
        output(ROOT, *pip, "-c", "constraints.txt", "vision-ssm")
    else:
        Path(sysconfig.get_path("purelib", scheme, names), "outer.pth").write_text(site + "\n")
    return programs


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    programs = environment(folder, sys.argv[2] if len(sys.argv) > 2 else None)
    home = Path(output(folder, programs / "python", "-c", "import vision_ssm; print(vision_ssm.__file__)").strip())
    if folder not in home.parents:
        sys.exit(f"error: the wheel was to be tried, and vision_ssm is found in {home.parent}")
    kernel = json.loads(output(folder, programs / "vision-ssm", "doctor", "--json"))["kernel"]
    if not kernel["loaded"]:
        sys.exit(f"error: the wheel's native kernel is missing or does not load: {kernel}")
    output(folder, programs / "python", "-c", PICTURE)
    found = json.loads(output(folder, programs / "vision-ssm", "predict", "picture.png", "--json"))
    best = found["results"][0]["classes"][0]
    print(f"{home.parent}: kernel {kernel['instruction_set']}, first prediction {best['class']}")


if __name__ == "__main__":
    main()
