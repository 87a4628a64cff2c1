"""The estimate of a sweep's time: by what jobs are, and by what has been seen lately."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from partly import partly_slow

from mmp.pruning.signals import PAPER_SIGNALS
from mmp.sweeps.estimate import _ONE_PASS, Seen, TimeLeft, epoch_of, time_left
from mmp.sweeps.progress import cached_phases

CNN, VIT = ("model=cnn", "data=digits"), ("model=vit", "data=digits")
OBSERVED, SEARCHED = (*CNN, "ranges=observed"), (*CNN, "allocation=searched")


def job(
    kind: Sequence[str], seconds: float, strategy: str = "p30", cached: Sequence[str] = (), **shared: float
) -> Seen:
    phases = {"dense": 0.0, "scores": 0.0, "ranges": 0.0, **shared}
    return Seen((*kind, f"strategy={strategy}"), seconds + sum(shared.values()), phases, cached=frozenset(cached))


def running(kind: Sequence[str], elapsed: float, **latest: object) -> Seen:
    epoch = epoch_of(latest, elapsed) if latest.get("phase") == "dense" else None
    return Seen(kind, elapsed, {str(latest.get("phase", "finetune")): elapsed}, latest, epoch)


@pytest.mark.parametrize(
    ("completed", "going", "waiting", "workers", "expected"),
    [
        ([], [], [], 1, TimeLeft(0.0, True)),
        ([], [], [CNN], 1, None),
        ([], [running(CNN, 5.0)], [CNN], 2, None),
        ([job(CNN, 10.0)], [running(CNN, 4.0)], [CNN, CNN], 1, TimeLeft(26.0, True)),
        # workers are free after 2 and 6 s; jobs end after 12, 16 and 22 s
        ([job(CNN, 10.0)], [running(CNN, 4.0), running(CNN, 8.0)], [CNN] * 3, 2, TimeLeft(22.0, True)),
        ([job(CNN, 10.0)], [], [CNN] * 5, 4, TimeLeft(20.0, True)),
        ([job(CNN, 10.0)], [running(CNN, 50.0)], [], 1, TimeLeft(0.0, True)),
        # a job of another kind counts once it has been seen
        ([job(CNN, 10.0)], [], [CNN, VIT], 1, TimeLeft(10.0, False)),
        ([job(CNN, 10.0), job(VIT, 80.0)], [], [CNN, VIT], 1, TimeLeft(90.0, True)),
        # the shared phases of the first job do not come again, but for another seed
        ([job(CNN, 10.0, dense=50.0, scores=5.0)], [], [CNN] * 2, 1, TimeLeft(20.0, True)),
        ([job(CNN, 10.0, dense=50.0, scores=5.0)], [], [(*CNN, "seed=1")] * 2, 1, TimeLeft(75.0, True)),
        ([job(CNN, 10.0, scores=5.0)], [], [(*CNN, "signal=product")] * 2, 1, TimeLeft(20.0, True)),
        # so do the ranges, which may be observed or searched: by table, a search also by signal and budget
        ([job(OBSERVED, 10.0, ranges=600.0)], [], [OBSERVED] * 29, 1, TimeLeft(290.0, True)),
        ([job(OBSERVED, 10.0, ranges=600.0)], [], [(*OBSERVED, "budget=0.9")] * 2, 1, TimeLeft(20.0, True)),
        ([job(OBSERVED, 10.0, ranges=600.0)], [], [(*OBSERVED, "seed=1")] * 2, 1, TimeLeft(620.0, True)),
        ([job(CNN, 10.0)], [], [OBSERVED] * 2, 1, TimeLeft(20.0, False)),
        ([job(SEARCHED, 10.0, ranges=90.0)], [], [SEARCHED] * 2, 1, TimeLeft(20.0, True)),
        ([job(SEARCHED, 10.0, ranges=90.0)], [], [(*SEARCHED, "budget=0.9")] * 2, 1, TimeLeft(110.0, True)),
        ([job(SEARCHED, 10.0, ranges=90.0)], [], [(*SEARCHED, "signal=product")] * 2, 1, TimeLeft(110.0, True)),
        ([job(CNN, 10.0)], [], [SEARCHED], 1, TimeLeft(10.0, False)),
        # a signal or a criterion that has not been seen may take long
        ([job(CNN, 10.0)], [], [(*CNN, "signal=obs")] * 2, 1, TimeLeft(20.0, False)),
        ([job(CNN, 10.0)], [], [(*CNN, "criterion=grasp")] * 2, 1, TimeLeft(20.0, False)),
        # an overlay can change everything
        ([job(("experiment=a",), 10.0)], [], [("experiment=a",), ("experiment=b",)], 1, TimeLeft(10.0, False)),
        # what an earlier sweep has left in the cache says nothing about the time that it took
        ([job(CNN, 10.0, cached=["dense"])], [], [CNN], 1, TimeLeft(10.0, True)),
        ([job(CNN, 10.0, cached=["dense"])], [], [(*CNN, "seed=1")], 1, TimeLeft(10.0, False)),
        ([job(CNN, 10.0, cached=["dense"]), job(CNN, 10.0, dense=50.0)], [], [(*CNN, "seed=1")], 1,
         TimeLeft(60.0, True)),
        # the shared phases that a running job has before it
        ([job(OBSERVED, 10.0, ranges=600.0)],
         [Seen((*OBSERVED, "seed=1"), 200.0, {"dense": 1.0, "ranges": 199.0}, {"phase": "ranges"})], [], 1,
         TimeLeft(401.0 + 10.0, True)),
        ([job(OBSERVED, 10.0, ranges=600.0)], [Seen((*OBSERVED, "seed=1"), 1.0, {"data": 1.0}, {"phase": "loggers"})],
         [], 1, TimeLeft(609.0, True)),
        ([job(CNN, 10.0)], [Seen(OBSERVED, 200.0, {"ranges": 200.0}, {"phase": "ranges"})], [], 1,
         TimeLeft(10.0, False)),
        # the machine has become slower
        ([job(CNN, 10.0)] * 20 + [job(CNN, 30.0)] * 3, [], [CNN], 1, TimeLeft(30.0, True)),
        # a training is extrapolated: a quarter of 20 epochs in 100 s, then 5 epochs of fine-tuning
        ([], [running(CNN, 100.0, phase="dense", fraction=0.25, epochs=20, finetune_epochs=5)], [CNN], 1,
         TimeLeft(300.0 + 100.0 + 100.0, True)),
        ([], [running(CNN, 100.0, phase="dense", fraction=0.25, epochs=20, finetune_epochs=0)], [CNN], 1, None),
        ([], [running(CNN, 20.0, phase="finetune", fraction=0.5)], [CNN], 1, TimeLeft(20.0 + 40.0, True)),
        ([], [running(CNN, 20.0, phase="finetune", fraction=0.001)], [CNN], 1, None),
        # a running job that has trained the dense model still has its own phases before it
        ([job(CNN, 10.0)], [Seen(CNN, 52.0, {"dense": 50.0, "masks": 2.0}, {"phase": "masks"})], [], 1,
         TimeLeft(8.0, True)),
    ],
)  # fmt: skip
def test_the_estimate(
    completed: list[Seen], going: list[Seen], waiting: list[Sequence[str]], workers: int, expected: TimeLeft | None
) -> None:
    assert time_left(completed, going, waiting, workers) == expected


@pytest.mark.parametrize(
    "other", ["model.name=x", "data=cifar10", "finetune=strong", "+reconstruct.ridge=1", "pattern=2:4"]
)
def test_what_decides_the_cost_is_a_kind_and_the_rest_is_not(other: str) -> None:
    seen = [job(CNN, 10.0)]
    assert time_left(seen, [], [(*CNN, other)], 1) in (TimeLeft(0.0, False), None)
    assert time_left(seen, [], [(*CNN, "strategy=p90", "budget=0.9", "job=7")], 1) == TimeLeft(10.0, True)


def test_the_signals_of_one_pass() -> None:
    assert {f"signal={signal.name}" for signal in PAPER_SIGNALS} == _ONE_PASS


def test_phases_that_were_read_from_the_cache() -> None:
    assert cached_phases({"dense_cached": True, "scores": {"cached": False}}) == {"dense"}
    assert cached_phases({"dense_cached": False, "scores": {"cached": True}}) == {"scores"}
    assert cached_phases({}) == frozenset()


# --- whole sweeps ---


@dataclass
class Timed:
    """A job of a sweep in one process: its overrides, and the seconds and epochs of its trainings."""

    overrides: tuple[str, ...]
    dense: float
    scores: float
    finetune: float
    evaluate: float = 1.0
    reconstruct: float = 0.0
    rest: float = 0.0
    dense_epochs: int = 20
    finetune_epochs: int = 5

    @property
    def phases(self) -> list[tuple[str, float]]:
        shared = [("data", self.rest), ("dense", self.dense), ("scores", self.scores), ("ranges", 0.0)]
        return [
            *shared, ("reconstruct", self.reconstruct), ("finetune", self.finetune), ("evaluate", self.evaluate)
        ]  # fmt: skip

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.phases)

    def at(self, elapsed: float) -> Seen:
        """Return what is known of the job after some seconds."""
        seconds: dict[str, float] = {}
        epoch, latest = None, dict[str, object]()
        for phase, whole in self.phases:
            passed = seconds[phase] = min(whole, elapsed - sum(seconds.values()))
            latest = {"phase": phase, "finetune_epochs": self.finetune_epochs}
            if phase in ("dense", "finetune") and whole > 1:
                epochs = self.dense_epochs if phase == "dense" else self.finetune_epochs
                latest |= {"epochs": epochs, "fraction": passed / whole}
            if phase == "dense":
                epoch = epoch_of(latest, passed)
            if passed < whole:
                break
        return Seen(self.overrides, elapsed, seconds, latest, epoch)

    @property
    def completed(self) -> Seen:
        cached = frozenset(name for name, seconds in self.phases[1:3] if seconds <= 0.1)
        return Seen(self.overrides, self.total, dict(self.phases), cached=cached)


def grid(
    model: str, dense: float, finetune: float, signals: Sequence[str] = ("magnitude", "gradient", "product")
) -> list:
    """Return the jobs of a model in the order of a sweep; times differ from job to job, as on a real machine."""
    jobs = []
    for number, (signal, strategy) in enumerate(itertools.product(signals, range(30 // len(signals)))):
        varied = finetune * (0.9, 1.05, 1.0, 1.15, 0.95)[number % 5]
        overrides = (f"model={model}", "data=digits", f"signal={signal}", f"strategy=s{strategy}")
        jobs.append(Timed(overrides, dense if not number else 0.1, 0.1 if strategy else 2.0, varied))
    return jobs


def recorded() -> list[Timed]:
    """Return the jobs of a sweep of docs/channels.md on Fashion-MNIST, as two busy cores took them."""
    jobs = []
    for row in csv.DictReader((Path(__file__).parent / "recorded.csv").read_text().splitlines()):
        names = ("model", "seed", "finetune", "strategy")
        overrides = ("data=fashion_mnist", "signal=obs_fisher", *(f"{name}={row[name]}" for name in names))
        overrides += ("ranges=channels", *(["ranges.name=uniform"] if row["ranges"] == "uniform" else []))
        dense, scores, training = (float(row[name]) for name in ("dense", "scores", "training"))
        rest = {name: float(row[name]) for name in ("evaluate", "reconstruct", "rest")}
        epochs = 0 if row["finetune"] == "none" else 5
        jobs.append(Timed(overrides, dense, scores, training, finetune_epochs=epochs, dense_epochs=20, **rest))
    return jobs


SWEEPS = {
    "short CNN jobs, then ViT jobs eight times as long": (grid("cnn", 22.0, 5.0) + grid("vit", 180.0, 47.0), 0.13),
    "a dense training of 18 minutes, then thirty jobs": (grid("resnet50", 1080.0, 270.0), 0.1),
    "a dense training of 18 minutes, then short jobs": (
        [Timed(j.overrides, j.dense, j.scores, j.finetune, finetune_epochs=1) for j in grid("resnet50", 1080.0, 54.0)],
        0.1,
    ),
    "long jobs, then short ones": (grid("vit", 180.0, 47.0) + grid("cnn", 22.0, 5.0), None),
    "recorded": (recorded(), 0.35),
}


QUICK = ("a dense training of 18 minutes, then thirty jobs", "a dense training of 18 minutes, then short jobs")


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(SWEEPS, QUICK))
def test_whole_sweeps_are_estimated_within_a_factor_of_one_and_a_half(name: str) -> None:
    jobs, known_from = SWEEPS[name]
    whole = sum(job.total for job in jobs)
    now, wrong, partial = 0.0, [], 0.0
    while now < 0.98 * whole:
        ends = list(itertools.accumulate(job.total for job in jobs))
        number = next(index for index, end in enumerate(ends) if end > now)
        current = jobs[number].at(now - (ends[number] - jobs[number].total))
        waiting = [job.overrides for job in jobs[number + 1 :]]
        found = time_left([job.completed for job in jobs[:number]], [current], waiting, 1)
        left = whole - now
        if found is None or not found.whole:
            assert found is None or found.seconds <= 1.1 * left, "a part is less than the whole"
            partial = now
        elif now > 0.1 * whole and not left / 1.5 <= found.seconds <= 1.5 * left:
            wrong.append((now, left, found.seconds))
        now += whole / 700
    assert not wrong
    assert known_from is None or partial <= known_from * whole
