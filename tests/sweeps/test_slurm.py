"""Sweeps as real Slurm arrays: jobs that fail, are cancelled, run out of time, or lose their node."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from misbehaving import overrides
from resources import needs, skip_without
from slurm_cluster import Attempt, Cluster
from sweeping import ROOT, arguments, environment, statuses, sweep

from benchmarks.sweeps import outcomes

pytestmark = [pytest.mark.slow, needs("slurm")]

SLURM = ["hydra/launcher=slurm_cpu", "hydra.launcher.partition=debug"]
SLURM += ["hydra.launcher.poll_s=2", "hydra.launcher.patience_s=8"]
STRATEGIES = ("p30", "p50", "p70")
LONG = ["finetune.epochs=20", "callbacks.early_stopping=null"]


def started(folder: Path, accounting: bool = True) -> Cluster:
    """Start a cluster; skip the test if the machine cannot install Slurm."""
    try:
        return Cluster.start(folder, accounting)
    except RuntimeError as error:
        if "could not install" in str(error):
            skip_without("slurm", str(error))
        raise


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = started(tmp_path_factory.mktemp("cluster"))
    yield running
    running.stop()


@contextmanager
def begun(command: list[str], cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command during a ``with`` block, and kill it at the end of the block."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment(**cluster.environment), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder; while it contains a file called ``slow``, jobs take half a second per batch."""
    return tmp_path_factory.mktemp("pace")


@pytest.fixture(scope="module")
def long(folder: Path) -> list[str]:
    """The overrides of a sweep that is slow until a test removes the file ``slow``."""
    return [f"strategy={','.join(STRATEGIES)}", *LONG, *overrides(folder, **dict.fromkeys(STRATEGIES, "slow"))]


@pytest.fixture(scope="module")
def expected(long: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcomes of the same sweep in one process, without faults."""
    results = tmp_path_factory.mktemp("reference")
    done = sweep(results, *long)
    assert done.returncode == 0, done.stderr
    return outcomes(results)


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"timeout while waiting for {what}"
        time.sleep(0.2)
    return found


def job_of(results: Path, strategy: str) -> dict[str, Any]:
    """Wait until a job has trained for an epoch, and return its process."""

    def trained() -> dict[str, Any] | None:
        begun = list(results.glob(f"sweeps/sweep/*-{strategy}-*/checkpoints/last.ckpt"))
        return statuses(results)[f"magnitude/{strategy}"]["process"] if begun else None

    return wait_for(f"a checkpoint of {strategy}", trained)


def ended(attempts: list[Attempt]) -> list[Attempt]:
    """Return the attempts, or none while one has not ended: a result is written seconds before the process ends."""
    return [] if any(a.state in ("PENDING", "RUNNING", "COMPLETING") for a in attempts) else attempts


def log_of(results: Path, strategy: str) -> str:
    return next(results.glob(f"sweeps/sweep/*-{strategy}-*/prune.log")).read_text()


def test_an_array_with_a_job_that_fails(cluster: Cluster, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.mkdir()
    given = [*SLURM, "strategy=p30,p50,p70", *overrides(once, p50="raise", p70="kill")]
    done = sweep(tmp_path, *given, **cluster.environment)
    assert done.returncode == 1, done.stderr
    found = {name.partition("/")[2]: status for name, status in statuses(tmp_path).items()}
    assert {name: status["status"] for name, status in found.items()} == {
        "p30": "completed",
        "p50": "failed",
        "p70": "failed",
    }
    assert "UnpicklableError" in found["p50"]["error"]["detail"]
    assert "without a result; its log is" in found["p70"]["error"]["message"]
    array, _, task = found["p30"]["process"]["slurm"].partition("_")
    assert task == "0"
    wait_for("accounts of three jobs", lambda: len(cluster.sacct(array)) == 3)
    # The same command submits only the missing jobs.
    done = sweep(tmp_path, *given, **cluster.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already completed, skipped") == 1
    assert "submitted 2 jobs" in done.stdout
    assert "3 completed, 0 failed, 0 unfinished" in done.stdout


def test_jobs_at_their_time_limit_are_requeued_and_resume(
    cluster: Cluster, folder: Path, long: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    (folder / "slow").touch()
    # Slurm checks limits every 30 seconds, so that the signal arrives after 30 to 60 seconds.
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.additional_parameters.signal=USR1@30"]
    command = arguments(tmp_path, *SLURM, *limit, *long)
    with begun(command, cluster) as running:
        array = job_of(tmp_path, "p30")["slurm"].partition("_")[0]
        wait_for("three requeues", lambda: [a.state for a in cluster.sacct(array)].count("REQUEUED") >= 3, 240)
        (folder / "slow").unlink()
        running.wait(timeout=300)
    assert running.returncode == 0
    assert outcomes(tmp_path) == expected
    for strategy in STRATEGIES:
        assert "has reached its time limit and is requeued" in log_of(tmp_path, strategy)
        assert "resuming from" in log_of(tmp_path, strategy)
    attempts = wait_for("the end of all jobs", lambda: ended(cluster.sacct(array)))
    listed = "\n".join(map(str, attempts))  # exit codes, and signals after the colon
    assert Counter(a.state for a in attempts if a.state != "REQUEUED") == {"COMPLETED": 3}, listed


def test_a_cancelled_job_fails_and_a_job_whose_node_dies_is_restarted(
    cluster: Cluster, folder: Path, long: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    (folder / "slow").touch()
    command = arguments(tmp_path, *SLURM, *long)
    with begun(command, cluster) as running:
        cluster.scancel(job_of(tmp_path, "p30")["slurm"])
        node = job_of(tmp_path, "p50")["host"]
        cluster.kill_node(node)
        (folder / "slow").unlink()
        running.wait(timeout=300)
    cluster.start_node(node)
    assert running.returncode == 1
    found = statuses(tmp_path)
    assert "ended as CANCELLED" in found["magnitude/p30"]["error"]["message"]
    assert found["magnitude/p50"]["status"] == "completed"  # Slurm ran it again on the other node
    assert "resuming from" in log_of(tmp_path, "p50")
    done = sweep(tmp_path, *SLURM, *long, **cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "submitted 1 jobs" in done.stdout
    assert "resuming from" in log_of(tmp_path, "p30")
    assert outcomes(tmp_path) == expected


def test_a_job_that_runs_twice_because_its_node_daemon_was_killed_has_one_result(
    cluster: Cluster, folder: Path, long: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    (folder / "slow").touch()
    command = arguments(tmp_path, *SLURM, *[key for key in long if not key.startswith("strategy=")], "strategy=p30")
    with begun(command, cluster) as running:
        place = job_of(tmp_path, "p30")
        cluster.kill_daemon(place["host"])  # the job goes on, and Slurm also starts it on the other node
        logs = list(tmp_path.glob("sweeps/sweep/.submitit/*/*_log.out"))
        wait_for("the second process", lambda: any("waiting for another process" in log.read_text() for log in logs))
        assert statuses(tmp_path)["magnitude/p30"]["process"] == place
        (folder / "slow").unlink()
        running.wait(timeout=300)
    cluster.start_node(place["host"])
    assert running.returncode == 0
    assert outcomes(tmp_path) == {name: outcome for name, outcome in expected.items() if "-p30-" in name}


def test_without_accounting_a_killed_job_is_detected_and_a_warning_is_logged(tmp_path: Path) -> None:
    cluster = started(tmp_path / "cluster", accounting=False)
    try:
        done = sweep(tmp_path, *SLURM, "strategy=p30", *overrides(p30="kill"), **cluster.environment)
    finally:
        cluster.stop()
    assert done.returncode == 1, done.stderr
    assert "this cluster keeps no accounting" in done.stdout
    (status,) = statuses(tmp_path).values()
    assert status["status"] == "failed"
    assert "ended as unknown, without a result" in status["error"]["message"]
