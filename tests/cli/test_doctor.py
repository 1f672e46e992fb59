"""`vision-ssm doctor`: which backend each device gets and why, with and without the native kernel."""

from __future__ import annotations

import json

import pytest
import torch

from tests.cli.commands import python

DOCTOR = "import sys; from vision_ssm.cli.main import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
# Opening the kernel's library fails as it does where it is missing a dependency; torch has opened its own before.
WITHOUT_KERNEL = """
import ctypes, torch
def refuse(*_, **__): raise OSError("simulated")
ctypes.CDLL = refuse
"""


def test_versions_devices_and_reasons(run):
    outcome = run("doctor")
    assert outcome.code == 0
    for text in ("torch", "timm", "Scan backends for cpu", "chunked", "reference", "only runs when asked for by name"):
        assert text in outcome.out


def test_json(run):
    found = json.loads(run("doctor", "--json").out)
    assert (
        found["versions"]["torch"] == torch.__version__.partition("+")[0]
        or found["versions"]["torch"] == torch.__version__
    )
    cpu = next(device for device in found["devices"] if device["device"] == "cpu")
    assert [backend["name"] for backend in cpu["backends"] if backend["chosen"]] == [cpu["chosen"]]


@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_a_forced_backend_is_shown(run, monkeypatch, name):
    monkeypatch.setenv("VISION_SSM_BACKEND", name)
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["devices"][0]["chosen"] == name
    assert json.loads(outcome.out)["variables"]["VISION_SSM_BACKEND"] == name


def test_a_misspelt_backend(run, monkeypatch):
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunkd")
    outcome = run("doctor")
    assert outcome.code == 2
    assert "Did you mean 'chunked'?" in outcome.err


def test_without_the_kernel_doctor_says_what_happens_and_what_to_do():
    done = python(WITHOUT_KERNEL + DOCTOR)
    assert done.returncode == 0, done.stderr
    assert "Native CPU kernel" in done.stdout
    assert "missing" in done.stdout
    assert "install a C++ compiler" in done.stdout
    done = python(WITHOUT_KERNEL + DOCTOR.replace("'doctor'", "'doctor', '--json'"))
    assert json.loads(done.stdout)["devices"][0]["chosen"] == "chunked"


def test_without_the_kernel_forcing_it_fails_with_the_reason():
    done = python(WITHOUT_KERNEL + DOCTOR, env={"VISION_SSM_BACKEND": "cpu"})
    assert done.returncode == 1
    assert "no backend can run" in done.stderr


def test_without_the_kernel_the_first_scan_says_so_once_and_works():
    code = WITHOUT_KERNEL + (
        "from vision_ssm.ops import selective_scan\n"
        "u, a, b = torch.ones(1, 1, 5, 4), -torch.ones(1, 4, 2), torch.ones(1, 1, 5, 2)\n"
        "print([float(selective_scan(u, u, a, b, b).sum()) for _ in range(3)])\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("C++ scan kernel is not available") == 1
    assert "vision-ssm doctor" in done.stderr
