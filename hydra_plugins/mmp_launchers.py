"""Launchers for joblib, Slurm (through submitit) and Ray; a process that dies ends its own job and no other.

Hydra loads launchers only from packages called ``hydra_plugins``.
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

from mmp.config.interruption import Interrupted, code_of, sigint_blocked
from mmp.errors import MmpError
from mmp.imports import import_once
from mmp.machine import CORES, MEMORY, cores, usable_memory
from mmp.openmp import THREADS, bound_spin, threads_by_user
from mmp.runs.slurm import hold_signal

if TYPE_CHECKING:
    from mmp.sweeps.jobs import Sweep

log = logging.getLogger(__name__)

Overrides = Sequence[Sequence[str]]


class ProcessLauncher(Launcher):
    """Base class of the launchers whose jobs run in other processes, on this machine or on a cluster.

    Attributes:
        limits: Environment variables that jobs get, such as the cores for each; None removes a variable.
    """

    limits: Mapping[str, str | None] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments; Hydra calls this before :meth:`launch`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def job(self, sweep: Sweep, index: int) -> tuple[Any, ...]:
        """Return the arguments of :func:`run_composed` for one job."""
        return self.hydra_context, self.task_function, sweep.configs[index], Singleton.get_state(), self.limits


def run_composed(
    context: HydraContext, task_function: TaskFunction, config: DictConfig, state: Any, limits: Mapping[str, str | None]
) -> str | None:
    """Run a job whose configuration is already composed, in a process of its own. It writes its result to its folder.

    Args:
        context: The launcher's Hydra context.
        task_function: The function to run.
        config: The job's configuration.
        state: The launcher's Hydra singletons.
        limits: Environment variables to set in this process or, if the value is None, to remove from it.

    Returns:
        Why the disk has no space for the job's files, if it has none.
    """
    bound_spin()
    for name, value in limits.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    done = run_job(
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    outcome = done._return_value
    return outcome.get("full_disk") if isinstance(outcome, Mapping) else None


def import_jobs() -> None:
    """Import the modules that a job needs."""
    bound_spin()
    import_once("mmp.runs.prune")


class Workers(ProcessLauncher):
    """Runs jobs in worker processes on one machine, with joblib.

    If a worker is killed, joblib gives up on all jobs. This launcher then runs the interrupted jobs again, one at a
    time, to find the one that kills its process. After that it runs the remaining jobs.

    Args:
        n_jobs: Number of workers; by default one per GPU slot. Without a GPU, one for each core that this process may
            use, or for each ``OMP_NUM_THREADS`` of them, and not more. The cores are divided among the workers, unless
            ``OMP_NUM_THREADS`` sets the number of threads.
        jobs_per_device: Number of workers that share a GPU.
        joblib: Further arguments of ``joblib.Parallel``.

    Raises:
        MmpError: if a number is less than 1.
    """

    def __init__(self, n_jobs: int | None = None, jobs_per_device: int = 1, **joblib: Any) -> None:
        # Without a batch size, joblib puts several jobs into one task if the first ones are skipped quickly.
        self.joblib: dict[str, Any] = {"batch_size": 1, **joblib, "backend": "loky"}
        for key, value in {"n_jobs": n_jobs, "jobs_per_device": jobs_per_device}.items():
            if value is not None and value < 1:
                raise MmpError(f"hydra.launcher.{key}={value}: must be at least 1; leave it out for the default")
        self._workers, self._per_device = n_jobs, jobs_per_device
        self._imports: Generator[Any] | None = None

    @contextmanager
    def starting(self, jobs: int) -> Iterator[None]:
        """Start the workers, which takes seconds, while the caller composes configurations in a ``with`` block.

        Args:
            jobs: Number of jobs; not more workers than that are started.
        """
        from multiprocessing import resource_tracker

        from joblib import Parallel, delayed

        self._divide(jobs)
        imports = (delayed(import_jobs)() for _ in range(self.joblib["pre_dispatch"]))
        resource_tracker.ensure_running()  # before the block, since its start unblocks SIGINT
        with sigint_blocked():
            self._imports = Parallel(**self.joblib, return_as="generator")(imports)
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that are not completed yet, until each of them has ended.

        Raises:
            MmpError: if there are more workers than GPU slots, or if a worker dies before any job has started.
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
        self._warn_of_fewer(len(job_overrides))

        def attempt(jobs: list[int]) -> bool:
            workers = min(len(jobs), self.joblib["pre_dispatch"])
            share = f"{self.limits[CORES]} core{'' if self.limits[CORES] == '1' else 's'}"
            log.info("jobs: %d, workers: %d with %s each; %s", len(jobs), workers, share, self._cores.describe())
            try:
                deque(self._imports or (), maxlen=0)
                tasks = (delayed(run_composed)(*self.job(sweep, index)) for index in jobs)
                with sigint_blocked():
                    running = Parallel(**self.joblib, return_as="generator")(tasks)
                for full_disk in running:
                    if full_disk is not None:
                        _end(running)
                        raise Interrupted.by_full_disk(full_disk)
            except TerminatedWorkerError:
                return False
            return True

        while waiting and not attempt(waiting):
            left = [index for index in waiting if not sweep.ended(index)]
            interrupted = [index for index in left if sweep.begun(index)]
            if left == waiting and not interrupted:
                raise MmpError(
                    "hydra/launcher=joblib: a worker process was killed before any job started, perhaps for lack of "
                    "memory; use fewer workers, with hydra.launcher.n_jobs=1"
                )
            log.error("a worker process was killed; the interrupted jobs run again, one at a time")
            for index in interrupted:
                if not attempt([index]):
                    sweep.mark_lost(index, "its process was killed twice, the second time alone, perhaps out of memory")
            waiting = [index for index in left if index not in interrupted]
        return [sweep.job_return(index) for index in range(len(sweep.jobs))]

    def _warn_of_fewer(self, jobs: int) -> None:
        """Warn if there are fewer workers than wanted, and say why."""
        wanted, workers, threads = min(self._workers or 0, jobs), self.joblib["pre_dispatch"], threads_by_user() or 1
        if wanted <= workers:
            return
        reason, way_out = self._cores.describe(), ""
        if threads > 1:
            reason += f", and {THREADS}={threads} sets {threads} threads for each worker"
            way_out = f"; set {THREADS}=1 or unset it for more workers"
        log.warning("hydra.launcher.n_jobs=%d: %s, so workers: %d%s", wanted, reason, workers, way_out)

    def _stop(self) -> None:
        """Stop workers that are still importing modules although no job is left."""
        if self._imports is not None:
            _end(self._imports)

    def _divide(self, jobs: int) -> None:
        """Set the number of workers, at most the number of jobs, and divide GPUs, cores and memory among them."""
        from mmp.runs.devices import SLOTS, visible_gpus

        accelerator = self.config.get("trainer", {}).get("accelerator", "auto")
        slots = [gpu for gpu in visible_gpus() for _ in range(self._per_device)] if accelerator != "cpu" else []
        self._cores, threads = cores(), threads_by_user()
        most = max(1, self._cores.whole // (threads or 1))
        workers = self._workers or len(slots) or most
        if slots and workers > len(slots):
            raise MmpError(
                f"hydra.launcher.n_jobs={workers}: there are only {len(slots)} GPU slots; leave n_jobs out, or let "
                f"more jobs share a GPU with hydra.launcher.jobs_per_device"
            )
        os.environ[SLOTS] = ",".join(slots)
        workers = min(workers, jobs) if slots else min(workers, jobs, most)
        # With n_jobs=1, joblib would run the jobs in this process, and a job could kill it. So there are at least two
        # workers, and pre_dispatch limits how many of them work.
        self.joblib |= {"n_jobs": max(workers, 2), "pre_dispatch": workers}
        share = max(1, self._cores.whole // workers)
        self.limits = {CORES: str(share), MEMORY: str(usable_memory() // workers)}
        if threads is None:
            self.joblib["inner_max_num_threads"] = share
            self.limits[THREADS] = None  # joblib sets it, and it would look like a setting of the user


def _end(tasks: Generator[Any]) -> None:
    """End joblib's workers and their tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib warns that tasks were not finished
        tasks.close()


class Slurm(SlurmLauncher):
    """Runs jobs as one Slurm array, with submitit.

    Completed jobs are not submitted. A job that dies is recorded as failed, and the other jobs go on.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # A job's process unpickles this first. Its imports take seconds, in which Slurm's signal may already arrive.
        return _begin_job, (), self.__dict__

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs that are not completed yet, and wait until each of them has ended."""
        from mmp.sweeps.jobs import Sweep

        assert self.hydra_context is not None
        sweep = Sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)
        missing = sweep.missing()
        if missing:
            jobs = self._submit(
                [sweep.jobs[index] for index in missing], [initial_job_idx + index for index in missing]
            )
            try:
                self._wait(sweep, dict(zip(missing, jobs, strict=True)))
            except KeyboardInterrupt as error:
                array = _array_of(jobs)
                note = f"; the jobs on the cluster go on (`scancel {array}` ends them)"
                raise Interrupted(note, code_of(error)) from None
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
        array = _array_of(jobs)
        log.info("submitted %d jobs as %s; `scancel %s` ends them, Ctrl-C here does not", count, array, array)
        return jobs

    def _wait(self, sweep: Sweep, jobs: dict[int, Any]) -> None:
        """Wait until each job has a result, or has left the queue without one.

        submitit would ask ``sacct`` instead, which reports a job as dead while Slurm requeues it after a node failure.
        """
        if _final_state(next(iter(jobs.values()))) is None:
            log.warning("`sacct` does not answer: this cluster keeps no accounting; reasons of failures are unknown")
        waiting, missing_since = dict(jobs), dict[int, float]()
        while waiting:
            active = _queued()
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
                    why = f"ended as {_final_state(job) or 'unknown'}, without a result; its log is {job.paths.stdout}"
                    sweep.mark_lost(index, f"Slurm job {job.job_id} {why}")
            time.sleep(self.params["poll_s"] if waiting else 0)


def _array_of(jobs: Sequence[Any]) -> str:
    """Return the id of the array that Slurm jobs are in."""
    return str(jobs[0].job_id).partition("_")[0]


def _begin_job() -> Slurm:
    hold_signal()
    bound_spin()  # sbatch may have been configured not to pass the environment on
    return Slurm()


def _final_state(job: Any) -> str | None:
    """Return a job's final state, such as ``TIMEOUT`` or ``OUT_OF_MEMORY``; None if Slurm keeps no accounting."""
    output = _output_of(["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", job.job_id])
    return None if output is None else (output.split(maxsplit=1) or ["unknown"])[0]  # "CANCELLED by 0"


def _queued() -> set[str] | None:
    """Return the ids of the jobs that are pending or running, in submitit's form; None if Slurm does not answer."""
    output = _output_of(["squeue", "--me", "--noheader", "--array", "--format=%i"])
    return None if output is None else set(output.split())


def _output_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


class Ray(ProcessLauncher):
    """Runs jobs as tasks of a Ray cluster.

    Completed jobs are not submitted. A job that dies is recorded as failed, and the other jobs go on. (With
    hydra-ray-launcher, a sweep ends when one process dies. The package's requirements also conflict with others.)

    Args:
        init: Arguments of ``ray.init``.
        remote: Arguments of ``ray.remote``: the resources of a job; by default one GPU if the cluster has any.
    """

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self._init, self._remote = dict(init), dict(remote)

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs that are not completed yet, and wait until each of them has ended."""
        from mmp.sweeps.jobs import Sweep

        try:
            import ray
        except ImportError as error:
            raise MmpError("hydra/launcher=ray: Ray is not installed; run `pip install ray` on all nodes") from error
        sweep = Sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)
        missing = sweep.missing()
        if missing and not ray.is_initialized():
            ray.init(**self._init)
        if cores_each := self._remote.get("num_cpus"):
            self.limits = {CORES: str(max(1, int(cores_each)))}
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
