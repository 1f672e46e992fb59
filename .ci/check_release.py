"""Check that a tag may be released: `python .ci/check_release.py v0.1.0`. Run by `make check-release`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, pyproject: str, changelog: str) -> list[str]:
    """Say what keeps ``tag`` from being released, given the texts of pyproject.toml and CHANGELOG.md."""
    version = tomllib.loads(pyproject)["project"]["version"]
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        return [f"a tag is v and a version, such as v{version}; got {tag!r}"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag} and pyproject.toml says version {version}: change one of them")
    sections = dict(re.findall(r"^## \[(.+?)\](?: - (.*))?$", changelog, re.MULTILINE))
    date = sections.get(tag.removeprefix("v"))
    if date is None:
        found.append(f"CHANGELOG.md has no section [{tag.removeprefix('v')}]: turn what is under [Unreleased] into it")
    elif not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        found.append(
            f"the section [{tag.removeprefix('v')}] of CHANGELOG.md needs its date: - YYYY-MM-DD; got {date!r}"
        )
    return found


def main() -> int:
    if len(sys.argv) != 2 or not sys.argv[1]:
        print("name the tag: make check-release TAG=v0.1.0", file=sys.stderr)
        return 2
    texts = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md"))
    found = problems(sys.argv[1], *texts)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if not found:
        print(f"{sys.argv[1]} may be released")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
