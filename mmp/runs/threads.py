"""The threads of a run, and its processes that load images: together no more than the cores it may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from mmp.config.schema import TrainConfig
from mmp.imports import import_once
from mmp.machine import Cores, cores
from mmp.openmp import THREADS, threads_by_user

log = logging.getLogger(__name__)

_CORES_FOR_LOADER = 4  # cores of a run on the CPU for each core that loads images


@dataclass(frozen=True)
class Division:
    """How a run divides its cores.

    Attributes:
        cores: The cores that it may use.
        processes: Processes that train, one for each of ``trainer.devices``.
        threads: Threads of each.
        loaders: Processes that load images for each.
        wanted: ``data.workers``, the number of such processes that the configuration allows.
    """

    cores: Cores
    processes: int
    threads: int
    loaders: int
    wanted: int

    @classmethod
    def of(cls, cores: Cores, wanted: int, processes: int, on_gpu: bool, threads: int | None) -> Division:
        """Divide cores.

        Args:
            cores: The cores to divide.
            wanted: Processes that load images, at most, for each process that trains.
            processes: Processes that train.
            on_gpu: Whether they train on a GPU: then one core is left for the process, otherwise most of them.
            threads: The number of threads that the user has set, if any.
        """
        share = max(1, cores.whole // processes)
        if threads is None:
            loaders = min(wanted, share - 1 if on_gpu else share // _CORES_FOR_LOADER)
            return cls(cores, processes, share - loaders, loaders, wanted)
        return cls(cores, processes, threads, min(wanted, max(share - threads, 0)), wanted)

    def describe(self) -> str:
        """Return a line such as ``2 of 16 cores may be used (processor affinity): 2 threads``."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        several = f"{self.processes} processes, each with " if self.processes > 1 else ""
        loaders = f", {self.loaders} of {self.wanted} data loader workers" if self.wanted else ""
        return f"{self.cores.describe()}: {several}{threads}{loaders}"


@contextmanager
def own_cores(config: TrainConfig, processes: int = 1) -> Iterator[None]:
    """Use at most the cores that this process may use, in a ``with`` block, and log their division.

    ``config.data.workers`` becomes smaller where there are not enough cores; no result depends on it. The user's
    ``OMP_NUM_THREADS`` takes precedence.

    Args:
        config: The validated configuration.
        processes: Processes that train. This process waits meanwhile, so it may use all of their threads.
    """
    # Not at the top: a mistake on the command line is reported before torch is imported.
    torch, evaluation = import_once("torch"), import_once("mmp.training.evaluation")
    on_gpu, before, by_user = evaluation.device_of(config).type == "cuda", torch.get_num_threads(), threads_by_user()
    wanted = config.data.workers if config.data else 0
    found = Division.of(cores(), wanted, processes, on_gpu, before if by_user else None)
    division = replace(found, threads=min(found.threads, before))
    log.info("%s", division.describe())
    if config.data:
        config.data.workers = division.loaders
    own = before if by_user else min(before, processes * division.threads)
    if own != before:
        torch.set_num_threads(own)
    try:
        with nullcontext() if by_user or processes == 1 else _inherited_threads(division.threads):
            yield
    finally:
        if own != before:
            torch.set_num_threads(before)


@contextmanager
def _inherited_threads(number: int) -> Iterator[None]:
    """Let processes that are started in a ``with`` block have a number of threads; Lightning would choose another."""
    os.environ[THREADS] = str(number)
    try:
        yield
    finally:
        os.environ.pop(THREADS, None)
