"""A real Slurm on this machine: a controller and two nodes, n0 and n1, each with 4 CPUs and 2 GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).parent / "slurm" / "cluster.sh"
START_SECONDS = 300  # enough to download all packages


class Attempt(NamedTuple):
    """One attempt at a job in Slurm's accounting; a requeued job has several."""

    job: str
    state: str
    exit_code: str
    nodes: str


@dataclass(frozen=True)
class Cluster:
    """A running cluster, all files of which are in one folder."""

    folder: Path

    @staticmethod
    def unavailable() -> str:
        """Return why no cluster can run on this machine; empty if one can."""
        if sys.platform != "linux":
            return "a real Slurm needs Linux"
        if os.geteuid() != 0:
            return "a real Slurm needs root"
        if not (shutil.which("slurmctld") or shutil.which("apt-get")):
            return "Slurm is not installed, and there is no apt-get to install it"
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"]
        if (
            not shutil.which("unshare")
            or subprocess.run(namespaces, capture_output=True, check=False, timeout=60).returncode
        ):
            return "a real Slurm needs namespaces, which are not permitted here"
        return ""

    @classmethod
    def start(cls, folder: Path, accounting: bool = True) -> Cluster:
        """Start a cluster in a new folder, and wait until its nodes are idle and, with accounting, sacct answers."""
        _cluster("start", folder, accounting=accounting)
        return cls(folder)

    def stop(self) -> None:
        """Kill all jobs and the cluster itself, in any state."""
        _cluster("stop", self.folder)

    def kill_node(self, name: str, noticed: bool = True) -> None:
        """Kill a node as a power cut would: slurmd and all jobs on it end at once.

        Slurm would detect this only after 15 to 40 seconds. With ``noticed`` the node is declared down at once.
        """
        _cluster("kill", self.folder, name)
        if noticed:
            self._declare_down(name)

    def kill_daemon(self, name: str, noticed: bool = True) -> None:
        """Kill only a node's slurmd: its jobs go on, but Slurm considers them dead and starts them again."""
        _cluster("kill-daemon", self.folder, name)
        if noticed:
            self._declare_down(name)

    def _declare_down(self, node: str) -> None:
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def start_node(self, name: str) -> None:
        """Restart a killed node or its daemon, and wait until it is idle."""
        _cluster("boot", self.folder, name)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which Slurm's clients, and so submitit, find this cluster."""
        return {"SLURM_CONF": str(self.folder.resolve() / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run one of Slurm's clients, such as ``scontrol requeue 3``, and return its output."""
        return _run(command, self.environment)

    def squeue(self) -> dict[str, str]:
        """Return the state of every submitted job, by the id of the job or array task (``3_0``)."""
        lines = self.run("squeue", "--states=all", "--array", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def sacct(self, job: str) -> list[Attempt]:
        """Return every recorded attempt at a job, or at all tasks of an array, oldest first."""
        fields = "JobID,State,ExitCode,NodeList"
        options = ["--duplicates", "--allocations", "--noheader", "--parsable2", f"--format={fields}", f"--jobs={job}"]
        return [Attempt(*line.split("|")) for line in self.run("sacct", *options).splitlines()]

    def scancel(self, *arguments: str) -> None:
        """Cancel jobs, or send them a signal: ``scancel("--batch", "--signal=USR1", "3_0")``."""
        self.run("scancel", *arguments)


def _cluster(command: str, folder: Path, *node: str, accounting: bool = True) -> None:
    _run([str(SCRIPT), command, str(folder), *node], {"ACCOUNTING": "slurmdbd" if accounting else "none"})


def _run(command: list[str] | tuple[str, ...], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
