"""`import vision_ssm` is inert, and registers with timm whichever of the two comes first."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "first",
    [
        "import vision_ssm, timm",
        "import timm, vision_ssm",
        pytest.param("import vision_ssm.layers.blocks, timm", marks=pytest.mark.slow),
    ],
)
def test_either_order_registers_once_and_leaves_timm_its_loader(first):
    done = run(
        f"{first}; m = timm.list_models('vim_*'); assert len(m) == 10, m; timm.create_model('vim_nano', depth=1); "
        "import importlib.resources as r; assert (r.files('timm') / 'version.py').is_file()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_brings_in_nothing():
    heavy = "('torch', 'timm', 'torchvision', 'numpy', 'triton')"
    done = run(f"import sys, vision_ssm; dir(vision_ssm); assert not [m for m in {heavy} if m in sys.modules]")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rooms_are_there_after_a_plain_import():
    names = [
        "analysis.cost",
        "bench.run_benchmark",
        "checkpoints.load_published",
        "errors.ConfigError",
        "models.Variant",
    ]
    names += ["ops.explain", "training.TrainConfig", "data", "inference", "layers", "tasks", "weights"]
    # Each in a process of its own would take a minute; backwards, so that none is there because of one above it.
    order = ["errors", "ops", "layers", "checkpoints", "data", "models", "tasks", "weights", "inference", "training"]
    names.sort(key=lambda name: [*order, "analysis", "bench"].index(name.partition(".")[0]))
    done = run("import vision_ssm; " + "; ".join(f"vision_ssm.{name}" for name in names))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    import vision_ssm

    assert vision_ssm.__version__ == version("vision-ssm")
    done = subprocess.run(
        [sys.executable, "-m", "vision_ssm", "--version"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"vision-ssm {vision_ssm.__version__}\n"


def test_every_public_name_exists_and_others_do_not():
    import vision_ssm

    assert all(callable(getattr(vision_ssm, name)) for name in vision_ssm.__all__)
    with pytest.raises(AttributeError, match="'vision_ssm' has no attribute 'creat_model'"):
        vision_ssm.creat_model  # noqa: B018
