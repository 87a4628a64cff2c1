"""Launchers that lose no job, whatever process dies: joblib's workers, Slurm by way of submitit, Ray.

Hydra loads launchers from packages called ``hydra_plugins`` only; this module is all that ours has.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig

from mmp.errors import MmpError
from mmp.runs.slurm import hold_signal

if TYPE_CHECKING:
    from mmp.sweeps.jobs import Sweep

log = logging.getLogger(__name__)

Overrides = Sequence[Sequence[str]]


class OwnProcesses(Launcher):
    """Keeps what Hydra hands to it, for jobs that run in other processes of this machine or of a cluster."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands to a launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def job(self, sweep: Sweep, index: int) -> tuple[Any, ...]:
        """Return what ``run_composed`` needs of a job."""
        return self.hydra_context, self.task_function, sweep.configs[index], Singleton.get_state()


def run_composed(context: HydraContext, task_function: TaskFunction, config: DictConfig, state: Any) -> None:
    """Run a job, composed already, in a process that knows nothing of its sweep; what comes of it lies in its folder.

    Args:
        context: Hydra's, of the launcher.
        task_function: What to run.
        config: The job's configuration.
        state: Hydra's singletons, of the launcher.
    """
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    run_job(
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def import_jobs() -> None:
    """Import what jobs are made of."""
    import mmp.runs.prune  # noqa: F401


class Workers(OwnProcesses):
    """Jobs in worker processes on one machine, by way of joblib.

    When a worker is killed, joblib gives up on all jobs. Here the ones that were under way are run again one by one, so
    that the one which kills its process is told from those beside it; then the others go on.

    Args:
        n_jobs: Number of workers; by default one per GPU slot, or per core where there is no GPU. Cores are divided
            among workers, unless ``OMP_NUM_THREADS`` says how many threads each has.
        jobs_per_device: Workers that share a GPU.
        joblib: Further arguments of ``joblib.Parallel``.
    """

    def __init__(self, n_jobs: int | None = None, jobs_per_device: int = 1, **joblib: Any) -> None:
        # Joblib would bundle jobs after a few that were skipped.
        self.joblib: dict[str, Any] = {"batch_size": 1, **joblib, "backend": "loky"}
        for key, value in {"n_jobs": n_jobs, "jobs_per_device": jobs_per_device}.items():
            if value is not None and value < 1:
                raise MmpError(f"hydra.launcher.{key}={value}: must be at least 1; leave it out for the default")
        self._workers, self._per_device = n_jobs, jobs_per_device
        self._imports: Generator[Any] | None = None

    @contextmanager
    def starting(self, jobs: int) -> Iterator[None]:
        """Start the workers, which takes seconds, while configurations are composed in a ``with`` block.

        Args:
            jobs: How many configurations; there are no more workers than that.
        """
        from joblib import Parallel, delayed

        self._divide(jobs)
        imports = (delayed(import_jobs)() for _ in range(self.joblib["pre_dispatch"]))
        self._imports = Parallel(**self.joblib, return_as="generator")(imports)
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Run what is missing until each job has come to an end.

        Raises:
            MmpError: if there are more workers than GPU slots, or a worker dies before any job has begun.
        """
        try:
            return self._launch(job_overrides, initial_job_idx)
        finally:
            self._stop()

    def _launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        from mmp.sweeps.jobs import Sweep

        self._divide(len(job_overrides))
        sweep = Sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)
        waiting = sweep.missing()

        def attempt(jobs: list[int]) -> bool:
            log.info("jobs: %d, workers: %d", len(jobs), min(len(jobs), self.joblib["pre_dispatch"]))
            try:
                deque(self._imports or (), maxlen=0)
                Parallel(**self.joblib)(delayed(run_composed)(*self.job(sweep, index)) for index in jobs)
            except TerminatedWorkerError:
                return False
            return True

        while waiting and not attempt(waiting):
            left = [index for index in waiting if not sweep.ended(index)]
            interrupted = [index for index in left if sweep.begun(index)]
            if left == waiting and not interrupted:
                raise MmpError(
                    "a worker process was killed before any job began; out of memory? "
                    "Try fewer workers, with hydra.launcher.n_jobs=1"
                )
            log.error("a worker process was killed; what was under way runs again, one job at a time")
            for index in interrupted:
                if not attempt([index]):
                    sweep.mark_lost(index, "its process was killed, twice, the second time alone; out of memory?")
            waiting = [index for index in left if index not in interrupted]
        return [sweep.job_return(index) for index in range(len(sweep.jobs))]

    def _stop(self) -> None:
        """Stop workers that are still importing what no job needs any more."""
        if self._imports is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's, that not everything was done
                self._imports.close()

    def _divide(self, jobs: int) -> None:
        """Divide GPUs, or cores, among as many workers as there are, or as there are jobs for."""
        import joblib

        from mmp.runs.devices import SLOTS, visible_gpus

        accelerator = self.config.get("trainer", {}).get("accelerator", "auto")
        slots = [gpu for gpu in visible_gpus() for _ in range(self._per_device)] if accelerator != "cpu" else []
        workers = self._workers or len(slots) or joblib.cpu_count()
        if slots and workers > len(slots):
            raise MmpError(
                f"hydra.launcher.n_jobs={workers} workers, but {len(slots)} GPU slots; leave n_jobs out, or let more "
                "jobs share a GPU with hydra.launcher.jobs_per_device"
            )
        os.environ[SLOTS] = ",".join(slots)
        workers = min(workers, jobs)
        # Joblib runs the jobs of a single worker in this process, which would die with a job; so there are two, and one
        # waits.
        self.joblib |= {"n_jobs": max(workers, 2), "pre_dispatch": workers}
        if "OMP_NUM_THREADS" not in os.environ:
            self.joblib["inner_max_num_threads"] = max(1, joblib.cpu_count() // workers)


class Slurm(SlurmLauncher):
    """Jobs as one Slurm array. What is completed already is not submitted; every job that dies is told, and only it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What a job's process unpickles first; the rest takes seconds to import, in which the signal may come.
        return _listening, (), self.__dict__

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what is missing and wait until each job has come to an end."""
        from mmp.sweeps.jobs import Sweep

        assert self.hydra_context is not None
        sweep = Sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)
        missing = sweep.missing()
        if missing:
            jobs = self._submit(
                [sweep.jobs[index] for index in missing], [initial_job_idx + index for index in missing]
            )
            self._wait(sweep, dict(zip(missing, jobs, strict=True)))
        return [sweep.job_return(index) for index in range(len(sweep.jobs))]

    def _submit(self, job_overrides: Overrides, numbers: Sequence[int]) -> list[Any]:
        import submitit

        shared = set(BaseQueueConf.__dataclass_fields__)
        params = {key: value for key, value in self.params.items() if key not in ("poll_s", "patience_s")}
        executor = submitit.AutoExecutor(
            params.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout")
        )
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": v for key, v in params.items()})
        count, state = len(job_overrides), Singleton.get_state()
        jobs = executor.map_array(
            self, job_overrides, ["hydra.sweep.dir"] * count, numbers, [f"job_{i}" for i in numbers], [state] * count
        )
        array = jobs[0].job_id.partition("_")[0]
        log.info("submitted %d jobs as %s; `scancel %s` ends them, Ctrl-C here does not", count, array, array)
        return jobs

    def _wait(self, sweep: Any, jobs: dict[int, Any]) -> None:
        """Wait for a result of each job, or for its leaving the queue without one.

        ``sacct``, which submitit asks, takes a job for dead that Slurm is about to run again after its node has died.
        """
        if _ended_as(next(iter(jobs.values()))) is None:
            log.warning("`sacct` gives no answer: this cluster keeps no accounts, so why a job died will not be known")
        waiting, missing_since = dict(jobs), dict[int, float]()
        while waiting:
            active = _active()
            for index, job in list(waiting.items()):
                now = time.monotonic()
                if active is None or job.job_id in active:
                    missing_since[index] = now
                missing = now - missing_since.setdefault(index, now)
                ended = job.paths.result_pickle.exists()
                if not ended and missing <= self.params["patience_s"]:
                    continue
                del waiting[index]
                log.info("%d of %d jobs have ended", len(jobs) - len(waiting), len(jobs))
                if not ended:
                    why = f"ended as {_ended_as(job) or 'unknown'}, without a result; its log is {job.paths.stdout}"
                    sweep.mark_lost(index, f"Slurm job {job.job_id} {why}")
            time.sleep(self.params["poll_s"] if waiting else 0)


def _listening() -> Slurm:
    hold_signal()
    return Slurm()


def _ended_as(job: Any) -> str | None:
    """Return a job's state by Slurm's accounts, such as ``TIMEOUT`` or ``OUT_OF_MEMORY``; None without accounts."""
    told = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", job.job_id])
    return None if told is None else (told.split(maxsplit=1) or ["unknown"])[0]  # "CANCELLED by 0"


def _active() -> set[str] | None:
    """Return the jobs that wait or run, as submitit names them; None if Slurm gives no answer just now."""
    told = _ask(["squeue", "--me", "--noheader", "--array", "--format=%i"])
    return None if told is None else set(told.split())


def _ask(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


class Ray(OwnProcesses):
    """Jobs as tasks of a Ray cluster. What is completed already is not submitted; every job that dies is told.

    Of hydra-ray-launcher nothing is needed: it ends the sweep at the first process that dies, and asks for versions of
    packages that others do not get along with.

    Args:
        init: Arguments of ``ray.init``.
        remote: Arguments of ``ray.remote``: what a job needs; by default a GPU where the cluster has any.
    """

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self._init, self._remote = dict(init), dict(remote)

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what is missing and wait until each job has come to an end."""
        from mmp.sweeps.jobs import Sweep

        try:
            import ray
        except ImportError as error:
            raise MmpError("hydra/launcher=ray needs Ray on all nodes: pip install ray") from error
        sweep = Sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)
        missing = sweep.missing()
        if missing and not ray.is_initialized():
            ray.init(**self._init)
        if missing and self._remote.get("num_gpus") is None:
            self._remote["num_gpus"] = int("GPU" in ray.cluster_resources())
        task = ray.remote(**self._remote)(run_composed)
        tasks = {task.remote(*self.job(sweep, index)): index for index in missing}
        while tasks:
            (ended,), _ = ray.wait(list(tasks))
            index = tasks.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                why = str(cause).partition("\n")[0]
                sweep.mark_lost(index, f"{type(cause).__name__}: {why}")
            log.info("%d of %d jobs have ended", len(missing) - len(tasks), len(missing))
        return [sweep.job_return(index) for index in range(len(sweep.jobs))]
