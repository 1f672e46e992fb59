"""What an install delivers: with a compiler one wheel for every Python, without one a pure wheel; honest metadata."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_COMPILER = {"CC": "/nonexistent", "CXX": "/nonexistent"}

needs_build_backend = pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="scikit-build-core is not installed"
)


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def build_wheel(folder: Path, env: dict[str, str]) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("-C", f"build-dir={folder / 'cmake'}", "-w", str(folder), str(ROOT)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@needs_build_backend
@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_pure_and_complete(tmp_path):
    wheel = build_wheel(tmp_path, NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not any(name.endswith((".so", ".dll", ".dylib")) for name in names)
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    recipes = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.yaml")}
    assert recipes
    assert sources | recipes | {"vision_ssm/py.typed"} <= names
    shipped = {f"vision_ssm/pretrained/{name}" for name in ("vim_nano_cifar10.safetensors", "vim_nano_cifar10.md")}
    assert shipped <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@needs_build_backend
@pytest.mark.slow
def test_the_pure_wheel_works_and_says_what_is_missing(tmp_path):
    wheel = build_wheel(tmp_path, NO_COMPILER)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -S keeps an editable install of this project out; the other packages are put on the path by hand.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *packages])}
    command = [sys.executable, "-S", "-c", "from vision_ssm.cli.main import entry_point; entry_point()", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "found no working C++ compiler" in done.stdout
    assert re.search(r"chunked +yes", done.stdout)


@needs_build_backend
@pytest.mark.slow
def test_with_a_compiler_one_wheel_serves_every_python(tmp_path):
    if not any(Path(folder, name).exists() for folder in os.get_exec_path() for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    wheel = build_wheel(tmp_path, {})
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if "libvision_ssm_cpu" in name]
    assert libraries in (["vision_ssm/libvision_ssm_cpu.so"], ["vision_ssm/libvision_ssm_cpu.dll"])


def test_constraints_hold_names_and_exact_versions_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", entry) for entry in entries)


def test_every_requirement_has_an_exact_version_inside_its_range():
    entries = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    exact = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in entries}
    settings = project()
    requirements = list(settings["build-system"]["requires"]) + list(settings["project"]["dependencies"])
    for extra in settings["project"]["optional-dependencies"].values():
        requirements += extra
    for requirement in requirements:
        name, _, lowest = requirement.partition(">=")
        version = exact[re.sub(r"[-_.]+", "-", name).lower()]
        assert tuple(map(int, lowest.split("."))) <= tuple(int(part) for part in version.split(".")[:3])


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing():
    code = (
        "import sys, vision_ssm, vision_ssm.cli.main\n"
        "loaded = {'torch', 'timm', 'torchvision', 'triton', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_model_brings_in_nothing_heavy_beyond_timm_and_starts_no_gpu():
    code = (
        "import sys, torch, timm\n"
        "before = set(sys.modules)\n"
        "import vision_ssm\n"
        "timm.create_model('vim_nano')\n"
        "assert not torch.cuda.is_initialized()\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "loaded &= {'triton', 'matplotlib', 'sklearn', 'rich', 'yaml'}\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
