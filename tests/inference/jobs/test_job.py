"""Jobs by processes: complete, without duplicates, equal to one process row by row, whatever is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pyarrow")

import pyarrow.parquet as pq

from tests.inference.jobs.archives import crew_in, rows_of, write_pictures, write_table, write_tar
from vision_ssm.errors import ConfigError, DataError, NotFetchedError, VisionSSMError
from vision_ssm.inference.features import features
from vision_ssm.inference.jobs import job as jobs
from vision_ssm.inference.jobs.job import run_job
from vision_ssm.inference.jobs.processes import ProcessCrew, _serve
from vision_ssm.inference.jobs.work import Work
from vision_ssm.inference.predict import predict


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The same sums here and in the workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_rows_are_those_of_one_process(weights, tmp_path):
    files = write_pictures(tmp_path / "in", 11, broken=4)
    archive = write_tar(tmp_path / "all.tar", files)
    alone = predict(weights, files, batch_size=2, top_k=2)
    seen = []
    job = run_job(
        "predict",
        weights,
        [tmp_path / "in", archive],
        tmp_path / "out",
        workers=2,
        shard_rows=4,
        batch_size=2,
        top_k=2,
        on_progress=lambda *done: seen.append(done),
    )
    assert (job.images, job.shards, job.resumed) == (22, 6, 0)
    assert seen[0] == (0, 22)
    assert seen[-1] == (22, 22)
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == [*map(str, files), *(f"{archive}/{file.name}" for file in files)]
    assert [failure.path for failure in job.failures] == [str(files[4]), f"{archive}/{files[4].name}"]
    assert rows[4]["classes"] is None
    assert rows[4]["error"] == alone.failures[0].reason
    wanted = [(one.path, one.result.to_dict()["classes"]) for one in alone.results]
    for start in (0, 11):
        usable = [row for row in rows[start : start + 11] if row["error"] is None]
        for row, (path, classes) in zip(usable, wanted, strict=True):
            assert os.path.basename(row["path"]) == os.path.basename(path)
            assert row["classes"] == [{**c, "probability": pytest.approx(c["probability"], rel=1e-6)} for c in classes]


def test_features_go_on_with_what_is_missing(weights, tmp_path):
    files = write_pictures(tmp_path / "in", 8)
    out = tmp_path / "out"
    arguments = {"workers": 1, "shard_rows": 4, "batch_size": 4}
    run_job("features", weights, tmp_path / "in", out, **arguments)
    first, second = sorted(out.glob("part-*"))
    kept = first.stat().st_mtime_ns
    second.unlink()
    (out / ".part-00001-of-00002.parquet.77.part").write_bytes(b"half of it")
    job = run_job("features", weights, tmp_path / "in", out, **arguments)
    assert (job.shards, job.resumed) == (2, 1)
    assert first.stat().st_mtime_ns == kept
    assert sorted(path.name for path in out.iterdir()) == ["_job.json", first.name, second.name]
    alone = features(weights, files, batch_size=4)
    assert pq.read_table(out).num_rows == 8
    assert [row["embedding"] for row in rows_of(out)] == [one.embedding.tolist() for one in alone.results]
    with pytest.raises(DataError, match="of another job: command was 'features' and is 'predict'"):
        run_job("predict", weights, tmp_path / "in", out, **arguments)


def test_wrong_use(weights, tmp_path):
    write_pictures(tmp_path / "in", 1)

    def refused(text, **options):
        with pytest.raises(ConfigError, match=text):
            run_job("predict", weights, tmp_path / "in", tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused("engine must be one of processes, ray, got 'dask'", engine="dask")
    refused("address 'auto' is that of a Ray cluster", address="auto")
    refused("at least one worker, got workers=0", workers=0)
    refused("batch_size must be at least 1, got 0", batch_size=0)
    refused("a job has no option 'pictures'", pictures="x")
    refused("device 'cuda:99' is not available on this machine", device="cuda:99")
    refused("top_q", top_q=3)


def test_workers_of_a_cluster_have_their_own_folder_and_devices(weights, tmp_path, monkeypatch):
    """Relative paths reach them whole, and are called as they were typed; the GPU is theirs."""
    files = write_pictures(tmp_path / "in", 2)
    write_tar(tmp_path / "all.tar", files)
    write_table(tmp_path / "t.parquet", "path", ["in/00000.png"])
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "RayCrew", crew_in(tmp_path / "away"))
    inputs = ["in", "all.tar", "t.parquet"]
    job = run_job("predict", weights.name, inputs, "out", engine="ray", device="cuda")
    assert (job.failures, job.weights) == ((), weights.name)
    found = [row["path"] for row in rows_of(tmp_path / "out")]
    assert found == ["in/00000.png", "in/00001.png", "all.tar/00000.png", "all.tar/00001.png", "in/00000.png"]


def test_who_takes_the_place_of_a_worker_takes_its_gpu(monkeypatch):
    devices = []

    class Process:
        exitcode = -9

        def __init__(self, target, args, daemon):
            devices.append(args[2])

        def start(self):
            pass

        def join(self):
            pass

        def terminate(self):
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    crew = ProcessCrew(Work("predict"), 2)
    crew._context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Process)  # each ends at once
    hired = [crew.hire(), crew.hire()]
    assert crew._heard(hired[1]).gone == "it was ended by signal 9"
    crew.hire()
    crew.dismiss()
    assert devices == ["cuda:0", "cuda:1", "cuda:1"]


def test_errors_of_workers_arrive(monkeypatch):
    """As what they are, if a message makes them; a fault of ours comes with its place."""

    def told(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(Work, "open", fail)
        ours, theirs = multiprocessing.Pipe()
        _serve(theirs, Work("predict"), None, 1)
        return ours.recv()

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert isinstance(told(ConfigError("too small")), ConfigError)
    fetched = told(NotFetchedError("Nothing came.", file="a.pth"))
    assert isinstance(fetched, VisionSSMError)
    assert str(fetched).startswith("Nothing came. Download the file")
    assert "in fail" in str(told(KeyError("x")))


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["worker", "driver"])
def test_killed_and_started_again(weights, tmp_path, whom):
    """2,000 images; a worker is killed and nothing is asked again; the driver is killed and the same call ends it."""
    psutil = pytest.importorskip("psutil")
    files = write_pictures(tmp_path / "in", 2000, broken=999)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vision_ssm", "predict", str(weights), str(tmp_path / "in"), "--shards", str(out)]
    command += ["--workers", "2", "--shard-rows", "64", "--device", "cpu", "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("part-*"))) < 3:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    if whom == "driver":
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert len(list(out.glob("part-*"))) < 32
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    else:
        spawned = [p for p in psutil.Process(driver.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        spawned[0].kill()
    told, errors = driver.communicate(timeout=300)
    assert driver.returncode == 1, errors  # an image is none
    assert '"shards": 32' in told
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(file) for file in files]
    alone = {one.path: one.result.to_dict()["classes"] for one in predict(weights, files).results}
    assert [row["path"] for row in rows if row["error"]] == [str(files[999])]
    for row in rows:
        if row["error"] is None:
            assert [c["class"] for c in row["classes"]] == [c["class"] for c in alone[row["path"]]]
            for found, wanted in zip(row["classes"], alone[row["path"]], strict=True):
                assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-6)
