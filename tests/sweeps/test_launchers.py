"""Launchers: jobs that crash beside others, the assignment of GPUs, and several devices in one job."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from misbehaving import overrides
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sweeping import QUICK, ROOT, environment, statuses, sweep
from warm import LIMIT

from callbacks.pruning import MaskPruning
from mmp.errors import MmpError
from mmp.machine import Cores
from mmp.pruning.masks import Masks, load_masks
from mmp.runs import devices

slow = pytest.mark.slow


@slow
def test_failed_jobs_do_not_stop_others_and_the_same_command_repeats_them(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.mkdir()
    deeds = overrides(once, p30="raise", p50="exit")
    arguments = ["strategy=p30,p50,p70,p90", *deeds]
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 1, done.stderr
    found = statuses(tmp_path)
    assert {name.partition("/")[2]: f["status"] for name, f in found.items()} == {
        "p30": "failed", "p50": "failed", "p70": "completed", "p90": "completed",
    }  # fmt: skip
    assert "UnpicklableError" in found["magnitude/p30"]["error"]["detail"]
    assert "Traceback" in found["magnitude/p30"]["error"]["detail"]
    for name in ("p30", "p50"):
        assert f"failed cnn-digits-magnitude-{name}" in done.stdout
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("already completed, skipped") == 2
    assert sorted(f["status"] for f in statuses(tmp_path).values()) == ["completed", "completed", "skipped", "skipped"]


@slow
def test_sigterm_ends_a_sweep_in_one_process(tmp_path: Path) -> None:
    done = sweep(tmp_path, "strategy=p30,p50", *overrides(p30="terminate"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "terminated: 0 of 2 jobs are done, 2 are left\nthe same command continues: " in done.stderr
    assert {name: f["status"] for name, f in statuses(tmp_path).items()} == {"magnitude/p30": "running"}


@slow
@pytest.mark.parametrize("deed", ["kill", "terminate"])
def test_other_workers_go_on_when_one_is_killed(deed: str, tmp_path: Path) -> None:
    arguments = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "strategy=p30,p50,p70,p90,balanced"]
    done = sweep(tmp_path, *arguments, *overrides(p30=deed, p70="raise"))
    assert done.returncode == 1, done.stderr
    found = {name.partition("/")[2]: f for name, f in statuses(tmp_path).items()}
    assert {name: f["status"] for name, f in found.items()} == {
        "p30": "failed", "p50": "completed", "p70": "failed", "p90": "completed", "balanced": "completed",
    }  # fmt: skip
    assert "its process was killed" in found["p30"]["error"]["message"]
    assert "UnpicklableError" in found["p70"]["error"]["detail"]
    assert "3 completed, 2 failed, 0 unfinished" in done.stdout


@slow
def test_submitit_runs_jobs_on_this_machine(tmp_path: Path) -> None:
    done = sweep(tmp_path, "hydra/launcher=submitit_local", "strategy=p30,p50", *overrides(p30="raise"))
    assert done.returncode == 1, done.stderr
    assert {name: f["status"] for name, f in statuses(tmp_path).items()} == {
        "magnitude/p30": "failed",
        "magnitude/p50": "completed",
    }


@slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed_is_named(tmp_path: Path) -> None:
    done = sweep(tmp_path, "hydra/launcher=ray", "strategy=p30")
    assert done.returncode == 1
    assert "hydra/launcher=ray: Ray is not installed; run `pip install ray` on all nodes" in done.stderr


def hold(slots: str, folder: Path, answers: Any) -> None:
    os.environ[devices.SLOTS] = slots
    with devices.gpu_slot(folder) as gpu:
        assert gpu == os.environ["CUDA_VISIBLE_DEVICES"]
        answers.put(gpu)
        time.sleep(60)


@slow
def test_a_slot_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def begin() -> Any:
        process = context.Process(target=hold, args=("0,0,3", tmp_path, answers), daemon=True)
        process.start()
        return process

    first = [begin() for _ in range(3)]
    assert sorted(answers.get(timeout=60) for _ in first) == ["0", "0", "3"]
    late = begin()
    late.join(timeout=2)
    assert late.is_alive()
    assert answers.empty()
    first[0].kill()
    assert answers.get(timeout=60) in ("0", "3")
    for process in (*first, late):
        process.kill()


def take_turns(folder: Path, jobs: int, order: Any) -> None:
    os.environ[devices.SLOTS] = "0"
    for job in range(jobs):
        with devices.gpu_slot(folder):
            order.put((os.getpid(), job, "begins"))
            time.sleep(0.05)
            order.put((os.getpid(), job, "ends"))
        time.sleep(0.5)  # the process waits for its next job


@slow
def test_two_processes_of_a_single_worker_take_turns_on_one_gpu(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    order = context.Queue()
    processes = [context.Process(target=take_turns, args=(tmp_path, 3, order), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    seen = [order.get(timeout=60) for _ in range(2 * 2 * 3)]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    for begins, ends in zip(seen[::2], seen[1::2], strict=True):
        assert begins[:2] == ends[:2], "two jobs had the slot at the same time"
    assert len({pid for pid, *_ in seen}) == 2


def test_a_process_stays_on_the_gpu_of_its_first_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_used", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(devices.SLOTS, "5,6")
    with FileLock(tmp_path / "5-0.lock"), devices.gpu_slot(tmp_path) as gpu:
        assert gpu == "6"
    with devices.gpu_slot(tmp_path) as gpu:
        assert gpu == "6"


def test_a_cuda_error_does_not_keep_the_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(devices, "_used", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(devices.SLOTS, "0")
    monkeypatch.setattr("torch.cuda.empty_cache", fail)
    with pytest.raises(ValueError, match="the job's own"), devices.gpu_slot(tmp_path):
        raise ValueError("the job's own")
    FileLock(tmp_path / "0-0.lock").acquire(timeout=0)


def test_without_slots_no_gpu_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.SLOTS, raising=False)
    with devices.gpu_slot() as gpu:
        assert gpu is None


@slow
def test_two_devices_train_one_model_with_one_result(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu", "finetune.averaging=0.9", f"hydra.run.dir={folder}"]
    command = [sys.executable, "prune.py", f"paths.results={tmp_path}", *QUICK, "logger=csv", *ranks]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert len(list(tmp_path.rglob("result.json"))) == 1
    weights, masks = (
        load_file(tmp_path / "run" / "model.safetensors"),
        load_masks(tmp_path / "run" / "masks.safetensors"),
    )
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    result = next(tmp_path.rglob("result.json")).read_text()
    assert f'"masks_hash": "{masks.digest()}"' in result
    assert '"test": 360' in result
    assert "train/loss" in (folder / "csv" / "metrics.csv").read_text()
    # In a multirun, a job may use one device only.
    done = sweep(tmp_path, "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 1
    (refused,) = statuses(tmp_path).values()
    assert "trainer.devices=2 in a multirun" in refused["error"]["message"]
    assert "hydra/launcher=joblib" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("keys", "gpus", "message"),
    [
        ({"n_jobs": 0}, 0, "hydra.launcher.n_jobs=0: must be at least 1"),
        ({"jobs_per_device": 0}, 2, "hydra.launcher.jobs_per_device=0: must be at least 1"),
        ({"n_jobs": 5, "jobs_per_device": 2}, 2, "n_jobs=5: there are only 4 GPU slots"),
    ],
)
def test_impossible_numbers_of_workers_are_refused(
    keys: dict[str, int], gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [str(index) for index in range(gpus)])
    with pytest.raises(MmpError, match=message):
        divided(monkeypatch, **keys)


def divided(monkeypatch: pytest.MonkeyPatch, accelerator: str = "auto", jobs: int = 30, **keys: int) -> dict[str, Any]:
    from hydra_plugins.mmp_launchers import Workers

    monkeypatch.setenv(devices.SLOTS, "")  # restores after the test what the launcher sets
    workers = Workers(**keys)
    workers.config = OmegaConf.create({"trainer": {"accelerator": accelerator}})
    workers._divide(jobs)
    return {**workers.joblib, "slots": os.environ[devices.SLOTS], "limits": workers.limits}


def test_workers_share_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    mmp_launchers = import_module("hydra_plugins.mmp_launchers")  # Hydra may have loaded it without its package
    monkeypatch.setattr(mmp_launchers, "cores", lambda: Cores(8.5, 16))
    monkeypatch.setattr(mmp_launchers, "usable_memory", lambda: 8000)
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = divided(monkeypatch, jobs_per_device=2)
    assert (found["n_jobs"], found["slots"], found["inner_max_num_threads"]) == (4, "0,0,1,1", 2)
    found = divided(monkeypatch, accelerator="cpu")
    assert (found["n_jobs"], found["slots"], found["inner_max_num_threads"]) == (8, "", 1)
    assert found["limits"] == {"MMP_CORES": "1", "MMP_MEMORY": "1000", "OMP_NUM_THREADS": None}
    # A single worker has an idle one beside it, since joblib would otherwise run the job in the launcher's process.
    found = divided(monkeypatch, accelerator="cpu", n_jobs=1)
    assert (found["n_jobs"], found["pre_dispatch"], found["inner_max_num_threads"]) == (2, 1, 8)
    assert divided(monkeypatch, accelerator="cpu", n_jobs=20)["pre_dispatch"] == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "inner_max_num_threads" not in divided(monkeypatch)
    found = divided(monkeypatch, accelerator="cpu")
    assert (found["pre_dispatch"], found["limits"]) == (2, {"MMP_CORES": "4", "MMP_MEMORY": "4000"})  # of three threads


@pytest.mark.parametrize(
    ("threads", "wanted", "line"),
    [
        (None, 9, "hydra.launcher.n_jobs=9: 8 of 16 cores may be used (affinity), so workers: 8"),
        ("1", 9, "hydra.launcher.n_jobs=9: 8 of 16 cores may be used (affinity), so workers: 8"),
        (
            "4", 3,
            "hydra.launcher.n_jobs=3: 8 of 16 cores may be used (affinity), and OMP_NUM_THREADS=4 sets 4 threads for "
            "each worker, so workers: 2; set OMP_NUM_THREADS=1 or unset it for more workers",
        ),
        ("4", 2, None),
        ("4", None, None),
    ],
)  # fmt: skip
def test_fewer_workers_than_wanted_have_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    threads: str | None,
    wanted: int | None,
    line: str | None,
) -> None:
    mmp_launchers = import_module("hydra_plugins.mmp_launchers")
    monkeypatch.setattr(mmp_launchers, "cores", lambda: Cores(8, 16, "affinity"))
    monkeypatch.setattr(devices, "visible_gpus", list)
    monkeypatch.setenv(devices.SLOTS, "")
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    workers = mmp_launchers.Workers(n_jobs=wanted)
    workers.config = OmegaConf.create({})
    workers._divide(30)
    workers._warn_of_fewer(30)
    assert caplog.messages == ([line] if line else [])


def test_ranks_with_different_masks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = Masks({"a": torch.tensor([True, False])})
    for other, allowed in ((masks.digest(), True), ("something else", False)):

        def gather(into: list[Any], mine: str, other: str = other) -> None:
            into[:] = [mine, other]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        trainer: Any = SimpleNamespace(world_size=2)
        if allowed:
            MaskPruning._compare_ranks(trainer, masks)
        else:
            with pytest.raises(MmpError, match="different masks"):
                MaskPruning._compare_ranks(trainer, masks)


def test_visible_gpus_follow_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "CDLL", lambda name: {"libcuda.so.1": name}[name])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert devices.visible_gpus() == ["4", "7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.visible_gpus() == []


def test_without_a_driver_torch_does_not_count_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError

    def counted() -> int:
        raise AssertionError

    monkeypatch.setattr(devices, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "device_count", counted)
    rocm = {"/dev/kfd": False}
    monkeypatch.setattr(Path, "exists", lambda path: rocm[str(path)])
    assert devices.visible_gpus() == []
    rocm["/dev/kfd"] = True
    with pytest.raises(AssertionError):
        devices.visible_gpus()


def test_there_are_no_more_workers_than_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("hydra_plugins.mmp_launchers"), "cores", lambda: Cores(64, 64))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "visible_gpus", list)
    for jobs, workers in ((100, 64), (5, 5), (1, 1)):
        found = divided(monkeypatch, jobs=jobs)
        assert (found["pre_dispatch"], found["n_jobs"]) == (workers, max(workers, 2))


def test_workers_stop_if_no_job_can_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.mmp_launchers import Workers

    def fail(*_: Any) -> None:
        raise OSError("boom")

    monkeypatch.setenv(devices.SLOTS, "")
    workers = Workers(n_jobs=2)
    workers.setup(hydra_context=None, task_function=None, config=OmegaConf.create({}))  # type: ignore[arg-type]
    monkeypatch.setattr("mmp.sweeps.jobs.Sweep", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with workers.starting(jobs=2):
            pass
        with pytest.raises(OSError, match="boom"):
            workers.launch([["seed=0"]], 0)
        assert list(workers._imports or ()) == []


@slow
def test_a_mistake_in_a_later_job_stops_the_starting_workers(tmp_path: Path) -> None:
    done = sweep(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "strategy=p30,p50,p98")
    assert done.returncode == 1
    assert re.fullmatch("error: strategy=p98: no such choice; .*\n", done.stderr)


def test_workers_get_no_jobs_if_all_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.mmp_launchers import Workers

    monkeypatch.setenv(devices.SLOTS, "")
    workers = Workers(n_jobs=2)
    workers.setup(hydra_context=None, task_function=None, config=OmegaConf.create({}))  # type: ignore[arg-type]
    monkeypatch.setattr(
        "mmp.sweeps.jobs.Sweep", lambda *_: SimpleNamespace(missing=list, jobs=[0], job_return=lambda job: job)
    )
    with warnings.catch_warnings(), workers.starting(jobs=2):
        warnings.simplefilter("error")
        assert workers.launch([["seed=0"]], 0) == [0]
        assert list(workers._imports or ()) == []
