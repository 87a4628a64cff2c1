"""Settings that do not fit whole channels: one line, before anything is trained, that names them and a way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm

pytestmark = pytest.mark.slow

BOTH = ["pattern=channels", "ranges=channels"]
SINGLE = "is for single weights, but pattern=channels prunes whole channels; set one of the two"


def error_line(*arguments: str) -> str:
    """Return the error line of a command that fails."""
    done = warm.run(list(arguments), {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["pattern=channels", "ranges=generic"], ["ranges=generic", "set ranges=channels"]),
        (["pattern=channels"], ["ranges=generic", "set ranges=channels"]),
        (["ranges=channels"], ["ranges=channels", "set pattern=channels"]),
        (["pattern='2:4'", "ranges=channels"], ["ranges=channels", "set pattern=channels"]),
        (["pattern=channels", "ranges=observed"], ["ranges=observed", SINGLE]),
        ([*BOTH, "criterion=lamp", "budget=0.5"], ["criterion=lamp", SINGLE]),
        ([*BOTH, "allocation=lamp", "budget=0.5"], ["allocation=lamp", SINGLE]),
        ([*BOTH, "criterion=lamp", "match=results/sweeps/sweep"], ["criterion=lamp", SINGLE]),
        ([*BOTH, "match=results/sweeps/sweep"], ["match=results/sweeps/sweep", "criterion=none"]),
        (["budget.macs=0.5"], ["budget.macs=0.5", "set pattern=channels"]),
        (["budget.macs=0.5", "criterion=lamp"], ["budget.macs=0.5", "set pattern=channels"]),
        ([*BOTH, "budget.macs=0.5", "budget.sparsity=0.5"], ["budget.macs=0.5", "budget.sparsity=0.5", "only one"]),
        ([*BOTH, "budget.macs=0.5", "budget.megabytes=1"], ["budget.megabytes=1", "budget.macs=0.5", "only one"]),
        ([*BOTH, "budget.macs=0.5", "+budget.strategies={p30: 0.5}"], ["budget.strategies.p30=0.5", "only one"]),
        ([*BOTH, "budget.macs=1.5"], ["budget.macs=1.5", "(0, 1]"]),
        ([*BOTH, "budget.macs=0"], ["budget.macs=0", "(0, 1]"]),
        (["pattern=channels:0", "ranges=channels"], ["pattern=channels:0", "such as channels:8"]),
        (["pattern=channels:1.5", "ranges=channels"], ["pattern=channels:1.5", "such as channels:8"]),
        (["pattern=Channels", "ranges=channels"], ["pattern=Channels", "such as channels:8"]),
        (["pattern=channels:512", "ranges=channels"], ["pattern=channels:512", "use a smaller multiple"]),
        ([*BOTH, "budget=0.99"], ["budget=0.99", "out of reach", "of all parameters"]),
        ([*BOTH, "budget.macs=0.001"], ["budget.macs=0.001", "out of reach", "of the multiply-adds"]),
        ([*BOTH, "budget.megabytes=0.001"], ["budget.megabytes=0.001", "out of reach", "MB"]),
        ([*BOTH, "allocation=searched"], ["allocation=searched", "reconstruct=least_squares"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_before_anything_is_trained(
    overrides: list[str], parts: list[str], tmp_path: Path
) -> None:
    line = error_line("prune.py", "model=cnn", "data=digits", *overrides, f"paths.results={tmp_path}")
    for part in parts:
        assert part in line
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.glob("cache/dense*"))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=timm", "model.name=resnet*", *BOTH], ["pattern=channels", "model.name=resnet*", "pattern=none"]),
        (["model=cnn", "pattern=channels"], ["ranges=generic", "set ranges=channels"]),
        (["model=cnn", "ranges=channels"], ["ranges=channels", "set pattern=channels"]),
        (["model=cnn", "data=digits", "pattern=channels", "ranges=observed"], ["ranges=observed", SINGLE]),
        (["model=cnn", "budget.macs=0.5"], ["budget.macs=0.5", "set pattern=channels"]),
        (["model=cnn", "pattern=channels:0", "ranges=channels"], ["pattern=channels:0", "such as channels:8"]),
        (["model=cnn", *BOTH, "criterion=lamp"], ["criterion=lamp", "leave it out"]),
        (["model=cnn", *BOTH, "allocation=lamp"], ["allocation=lamp", "leave it out"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_a_plan_is_one_line(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    line = error_line("-m", "mmp.plan", *overrides, f"paths.results={tmp_path}", f"paths.cache={tmp_path}")
    for part in parts:
        assert part in line
