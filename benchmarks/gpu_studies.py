"""Parts of ``python -m benchmarks.gpu``: the one-shot benchmark and the study, by processes that share the GPU.

Rows go to ``oneshot.jsonl`` and ``study.jsonl`` in the work folder. ``python -m benchmarks.oneshot merge FILE`` and
``python -m benchmarks.study merge FILE`` add them to the committed ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import oneshot, study, study_runs
from benchmarks.gpu_figures import DEVICE, ROOT, Figure, Setting
from benchmarks.gpu_sharing import start_service, stop_service
from mmp.machine import cores
from mmp.runs.memory import keep_freed_memory

NETWORKS = "networks"  # the folder of checkpoints in the data folder; a file has the name of its network
MOST_PROCESSES = 15
SERVICE = "multi_process_service"  # a folder in the work folder
QUICK = ("finetune.epochs=1", "trainer.limit_train_batches=1", "trainer.compile=false")  # settings of a dry run
RESNET20, RESNET56 = "network=resnet20", "network=resnet56_zeros"


@dataclass(frozen=True)
class Campaign:
    """What processes measure together.

    Attributes:
        stages: The words of each command, the most important first.
        dry: The same for a dry run.
    """

    stages: Sequence[Sequence[str]]
    dry: Sequence[Sequence[str]]


_MANY = "methods=obs+LAMP+MAG+ERK+searched"
_CLAIMS = "parts=ours+baselines+strategies"
CAMPAIGNS = {
    "oneshot": Campaign(
        (
            (RESNET20, "solved=layer-wise", _MANY),
            (RESNET20, "solved=joint", _MANY, "seeds=0"),
            (RESNET20, "solved=joint", "methods=obs+LAMP+ERK", "seeds=1,2"),
            (RESNET20, "solved=layer-wise"),
            (RESNET56, "solved=layer-wise,joint", "methods=obs+LAMP", "seeds=0"),
            (RESNET20, "solved=brief"),
        ),
        ((RESNET20, "solved=layer-wise", "methods=MAG+LAMP", "seeds=0", "sparsities=0.9"),),
    ),
    "study": Campaign(
        (
            (RESNET20, "sparsities=0.9", _CLAIMS),
            (RESNET20, "sparsities=0.95", _CLAIMS),
            (RESNET20, "sparsities=0.9", "parts=re-solved-baselines"),
            (RESNET56, "sparsities=0.9", _CLAIMS),
            (RESNET20, "sparsities=0.95", "parts=re-solved-baselines"),
            (RESNET20, "sparsities=0.9", "parts=signals+re-solved-strategies"),
            (RESNET20, "sparsities=0.8", _CLAIMS),
        ),
        ((RESNET20, "sparsities=0.9", "seeds=0", "parts=baselines"),),
    ),
}


def measure(setting: Setting, campaign: str) -> Iterator[Figure]:
    """Measure as many runs as the time limit of the part allows; `gather` counts them.

    Raises:
        RuntimeError: if a process fails.
    """
    count = min(MOST_PROCESSES, max(1, cores().whole - 1)) if DEVICE == "cuda" else 1
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if DEVICE == "cuda":
        environment |= start_service(setting.work / SERVICE)
    command = [sys.executable, "-m", __name__, campaign, str(setting.data), str(setting.work), str(int(setting.dry))]
    running = [
        subprocess.Popen([*command, f"{number}/{count}"], cwd=ROOT, env=environment)  # noqa: S603
        for number in range(count)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"processes ended with exit codes {codes}")
    yield from ()


def gather(setting: Setting, campaign: str) -> Iterator[Figure]:
    """Yield the number of measured runs, also if the part was stopped, and stop the service that it has started."""
    stop_service(setting.work / SERVICE)
    rows = setting.work / f"{campaign}.jsonl"
    count = len(rows.read_text(encoding="utf-8").splitlines()) if rows.is_file() else 0
    yield Figure(f"{campaign}: measured runs", count, "runs")


def main(campaign: str, data: str, work: str, dry: str, share: str) -> None:
    """Measure a share of all runs of a campaign; a command that fails does not stop those after it.

    Raises:
        SystemExit: at the end, if one has failed.
    """
    commands = {"oneshot": oneshot.main, "study": study.main}[campaign]
    stages = CAMPAIGNS[campaign].dry if int(dry) else CAMPAIGNS[campaign].stages
    if int(dry):
        study_runs.RUN = (*study_runs.RUN, *QUICK)
    failed = 0
    for stage in stages:
        network = stage[0].partition("=")[2]
        places = [f"checkpoint={Path(data) / NETWORKS / network}.safetensors", f"root={data}", f"share={share}"]
        try:
            commands(
                ["measure", *stage, *places, f"rows={Path(work) / campaign}.jsonl", f"cache={Path(work) / 'cache'}"]
            )
        except Exception:
            failed += 1
            traceback.print_exc()
    sys.exit(failed)


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
