"""The job files of examples/: read as their programs read them, as far as that goes without a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def commands() -> dict[str, str]:
    """The bash that each job runs."""
    _, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/bash", "-c"]
    return {"slurm": (EXAMPLES / "slurm.sh").read_text(), "kubernetes": container["args"][0]}


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_the_job_is_bash_and_its_command_is_ours(name: str) -> None:
    from torch.distributed.run import get_args_parser

    from vision_ssm.cli.main import build_parser

    text = commands()[name]
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    subprocess.run([bash, "-n"], input=text, text=True, check=True)
    line = re.search(r"^ *(?:srun|exec) .*?torchrun (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert line is not None
    words = [word.replace("$SLURM_NNODES", "2") for word in shlex.split(line[1])]
    asked = get_args_parser().parse_args(words)
    assert (asked.nnodes, asked.nproc_per_node, asked.max_restarts, asked.rdzv_backend) == ("2", "8", 3, "c10d")
    assert (asked.module, asked.training_script) == (True, "vision_ssm")
    ours = [word for word in asked.training_script_args if word != "${resume[@]}"]
    program, _ = build_parser()
    options, unknown = program.parse_known_args([*ours, "--resume"])
    assert not unknown
    assert (options.command, options.recipe, options.resume) == ("train", "vim_tiny_imagenet", "")


def test_there_is_time_to_write_the_state() -> None:
    """torchrun waits longer than its 30 seconds, and whoever asks it to stop waits longer still."""
    text = commands()["slurm"]
    _, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    variables = {each["name"]: each["value"] for each in pods["containers"][0]["env"]}
    assert 30 < int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pods["terminationGracePeriodSeconds"]
    cluster, torchrun = re.findall(
        r"^#SBATCH --signal=TERM@(\d+)$|^export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)$", text, re.M
    )
    assert 30 < int(torchrun[1]) < int(cluster[0])


def test_the_pods_find_each_other() -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    name, pods = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--rdzv-endpoint {name}-0.{pods['subdomain']}:" in commands()["kubernetes"]
    mounted = {mount["name"] for mount in pods["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods["volumes"]}
