"""A real Slurm on this one machine: a head and two nodes, n0 and n1, each with 4 CPUs and 2 GPUs to give away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).parent / "slurm" / "cluster.sh"
START_SECONDS = 300  # with a download of every package


class Attempt(NamedTuple):
    """One run of a job as accounting knows it; a job that was requeued has several."""

    job: str
    state: str
    exit_code: str
    nodes: str


@dataclass(frozen=True)
class Cluster:
    """A running cluster, everything of which lies in one folder."""

    folder: Path

    @staticmethod
    def unavailable() -> str:
        """Why no cluster can be had here; empty if one can."""
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
            return "a real Slurm needs namespaces, which may not be made here"
        return ""

    @classmethod
    def start(cls, folder: Path, accounting: bool = True) -> Cluster:
        """Start a cluster in a new folder; its nodes are idle and, with accounting, sacct answers on return."""
        _cluster("start", folder, accounting=accounting)
        return cls(folder)

    def stop(self) -> None:
        """End everything that runs on the cluster and the cluster itself, whatever state it is in."""
        _cluster("stop", self.folder)

    def kill_node(self, name: str, noticed: bool = True) -> None:
        """Cut a node's power: slurmd and all jobs on it are gone at once.

        Slurm takes 15 to 20 seconds to miss a node, and twice that for one that is back before; so it is told.
        """
        _cluster("kill", self.folder, name)
        if noticed:
            self._declare_down(name)

    def kill_daemon(self, name: str, noticed: bool = True) -> None:
        """Kill a node's slurmd only: jobs on it go on, but Slurm takes them for dead and runs them once more."""
        _cluster("kill-daemon", self.folder, name)
        if noticed:
            self._declare_down(name)

    def _declare_down(self, node: str) -> None:
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def start_node(self, name: str) -> None:
        """Bring a killed node, or its daemon, back; it is idle on return."""
        _cluster("boot", self.folder, name)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's clients, and thus submitit, need to find this cluster."""
        return {"SLURM_CONF": str(self.folder.resolve() / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Call one of Slurm's clients, say ``scontrol requeue 3``, and return what it prints."""
        return _run(command, self.environment)

    def squeue(self) -> dict[str, str]:
        """Return the state of every job that was ever submitted, by job or array task ("3_0")."""
        lines = self.run("squeue", "--states=all", "--array", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def sacct(self, job: str) -> list[Attempt]:
        """Return every run of a job, or of all tasks of an array, that accounting knows of, oldest first."""
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
