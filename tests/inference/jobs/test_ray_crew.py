"""The same jobs on Ray: equal rows, and what is killed costs time only."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("ray")

import psutil
import ray

from tests.inference.jobs.archives import rows_of, write_pictures
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.inference.jobs.crew import carry_out
from vision_ssm.inference.jobs.plan import plan_of
from vision_ssm.inference.jobs.ray_crew import RayCrew
from vision_ssm.inference.jobs.references import list_references
from vision_ssm.inference.jobs.work import Work
from vision_ssm.inference.predict import predict


@pytest.mark.slow
def test_pieces_are_those_of_this_process(weights, tmp_path):
    write_pictures(tmp_path / "in", 5, broken=2)
    plan = plan_of(list_references([tmp_path / "in"], []), 2)
    work = Work("predict", str(weights), options={"batch_size": 2})
    bench = work.open("cpu")
    kept = {}
    crew = RayCrew(work, workers=1, device="cpu")
    carry_out(crew, plan.pieces, crew.workers, lambda piece, content: kept.update({piece.number: content}))
    assert kept == {piece.number: bench.content(piece) for piece in plan.pieces}
    assert not ray.is_initialized()
    crew = RayCrew(Work("predict", str(tmp_path / "none.safetensors")), workers=1)
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        carry_out(crew, plan.pieces, 1, lambda *_: None)


def test_a_cluster_that_is_not_there(weights):
    with pytest.raises(ConfigError, match="cannot join the Ray cluster at 'auto'"):
        RayCrew(Work("predict", str(weights)), address="auto")


@pytest.fixture
def cluster():
    """Two nodes of one processor each, beside one that has none."""
    utilities = pytest.importorskip("ray.cluster_utils")
    made = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["actor", "node", "driver"])
def test_killed(cluster, weights, tmp_path, whom):
    """2,000 images; an actor or a node is killed and nothing is asked again; the driver is, and is started again."""
    made, nodes = cluster
    files = write_pictures(tmp_path / "in", 2000, broken=999)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vision_ssm", "predict", str(weights), str(tmp_path / "in"), "--shards", str(out)]
    command += ["--engine", "ray", "--address", made.address, "--workers", "2", "--shard-rows", "64", "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("part-*"))) < 3:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    if whom == "driver":
        driver.kill()
        driver.communicate()
        assert len(list(out.glob("part-*"))) < 32
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    elif whom == "node":
        made.remove_node(nodes[0], allow_graceful=False)
    else:
        ours = psutil.Process().children(recursive=True)  # a test beside this one has actors of its own
        actors = [process for process in ours if process.is_running() and "ray::_Actor" in " ".join(process.cmdline())]
        actors[0].kill()
    told, errors = driver.communicate(timeout=400)
    assert driver.returncode == 1, errors  # an image is none
    assert '"shards": 32' in told
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert [row["path"] for row in rows if row["error"]] == [str(files[999])]
    alone = {one.path: one.result.to_dict()["classes"] for one in predict(weights, files).results}
    for row in rows:
        if row["error"] is None:
            assert [c["class"] for c in row["classes"]] == [c["class"] for c in alone[row["path"]]]
            for found, wanted in zip(row["classes"], alone[row["path"]], strict=True):
                assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-6)
