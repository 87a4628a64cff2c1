"""An edit of a user's code or of a file that decides a run is followed by another run, never by an earlier result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import warm
from places import ROOT

FILES = {
    "mine/__init__.py": "",
    "mine/signals.py": (
        "from .formulas import importance\n"
        "class Signal:\n"
        "    name, needs = 'mine', frozenset()\n"
        "    def score(self, weight, statistics):\n"
        "        return importance(weight)\n"
    ),
    "mine/formulas.py": "from constants import SIGN\ndef importance(weight):\n    return SIGN * weight.abs()\n",
    "constants.py": "SIGN = 1\n",
    "mine/schedules.py": (
        "from constants import SIGN\n"
        "class Late:\n"
        "    last_epoch = 0\n"
        "    def fraction(self, epoch):\n"
        "        return 1.0\n"
    ),
    "mine/criteria.py": (
        "from mmp.pruning.criteria import Criterion\n"
        "from .formulas import importance\n"
        "class Ranking(Criterion):\n"
        "    name = 'ranking'\n"
        "    def score(self, weight, statistics):\n"
        "        return importance(weight)\n"
    ),
    "mine/watching.py": "import pytorch_lightning as pl\nclass Watch(pl.Callback):\n    pass\n",
    "conf/criterion/ranking.yaml": "name: ranking\n_target_: mine.criteria.Ranking\n",
    "conf/schedule/late.yaml": "_target_: mine.schedules.Late\n",
    "conf/strategy/own.yaml": "name: own\nposition: 0.4\n",
    "conf/ranges/own.yaml": "name: own\ndefault: [0.2, 0.6]\n",
}
QUICK = ["dense.epochs=1", "dense.warmup_epochs=0", "finetune=none", "paths.results=out", "logger=none"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run one job; return its result, or its status if it was skipped."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("runs/*/result.json")}
    done = warm.run([str(ROOT / "prune.py"), *arguments, *QUICK], environment, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("runs/*/result.json")}
    written = [path for path, time in after.items() if before.get(path) != time]
    if not written:
        assert "already completed" in done.stdout + done.stderr
        return {"status": "skipped"}
    (path,) = written
    found: dict[str, Any] = json.loads(path.read_text())
    return found


SIGNAL = ["signal._target_=mine.signals.Signal", "signal.name=mine"]
CRITERION = ["criterion=ranking", "budget=0.5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "edited", "text"),
    [
        (SIGNAL, "constants.py", "SIGN = -1\n"),  # imported by a module that the signal imports
        (CRITERION, "mine/formulas.py", "def importance(weight):\n    return -weight.abs()\n"),
        (["strategy=own"], "conf/strategy/own.yaml", "name: own\nposition: 0.6\n"),
        (["strategy=p50", "ranges=own"], "conf/ranges/own.yaml", "name: own\ndefault: [0.3, 0.7]\n"),
    ],
    ids=["signal", "criterion", "strategy", "ranges"],
)
def test_an_edit_gives_other_masks(arguments: list[str], edited: str, text: str, folder: Path) -> None:
    first = run(folder, *arguments)
    assert run(folder, *arguments) == {"status": "skipped"}
    before = (folder / edited).read_text()
    (folder / edited).write_text(text)
    second = run(folder, *arguments)
    assert second["masks_hash"] != first["masks_hash"]
    assert second["dense_cached"]
    if edited.endswith(".py"):
        assert not second["scores"]["cached"]
    (folder / edited).write_text(before)
    assert run(folder, *arguments) == {"status": "skipped"}  # the first result is still there, and still right


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "edited"),
    [
        (["schedule=late"], "constants.py"),
        (["+callbacks.watch._target_=mine.watching.Watch"], "mine/watching.py"),
    ],
    ids=["schedule", "callback"],
)
def test_an_edited_schedule_or_callback_is_not_already_completed(
    arguments: list[str], edited: str, folder: Path
) -> None:
    first = run(folder, *arguments)
    with (folder / edited).open("a") as file:
        file.write("CHANGED = True\n")
    second = run(folder, *arguments)
    assert second["status"] == "completed"
    assert second["protocol"] != first["protocol"]  # a report compares only runs of one protocol
    assert second["scores"]["cached"]  # neither decides scores
    assert run(folder, *arguments) == {"status": "skipped"}
