"""Verdicts on hand-made runs: what they compare, what they choose by, and when a difference is more than noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hand_made_runs import run

from mmp.report.groups import Group
from mmp.report.tables import verdicts_table
from mmp.report.verdict import bands, paired_interval, verdicts


def test_both_are_chosen_on_validation_and_compared_on_test() -> None:
    runs = [
        run("p30", 0.9, 0.93, 0.91), run("p90", 0.9, 0.92, 0.95),
        run("!mag", 0.9, 0.91, 0.90), run("!lamp", 0.9, 0.90, 0.94),
    ]  # fmt: skip
    (verdict,) = verdicts(runs)
    assert (verdict.strategy[0].strategy, verdict.baseline[0].criterion) == ("p30", "mag")
    assert verdict.better == pytest.approx(1.0)
    # One seed: two independent accuracies of 400 images.
    assert verdict.noise == pytest.approx(196 * math.sqrt(0.91 * 0.09 / 400 + 0.9 * 0.1 / 400))
    assert verdict.words == "within the noise"


def test_seeds_are_paired() -> None:
    # Accuracies vary much between seeds, the differences within a seed do not: 1.0, 1.1 and 1.2 points.
    tests = {0: (0.90, 0.890), 1: (0.80, 0.789), 2: (0.70, 0.688)}
    runs = [r for seed, (a, b) in tests.items() for r in (run("p50", 0.9, a, a, seed), run("!mag", 0.9, b, b, seed))]
    (verdict,) = verdicts([replace(r, test_samples=40_000) for r in runs])
    assert verdict.better == pytest.approx(1.1)
    assert verdict.noise == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert verdict.words == "strategy wins"


def test_no_interval_is_narrower_than_the_images_allow() -> None:
    runs = [r for seed in (0, 1) for r in (run("p50", 0.9, 0.90, 0.90, seed), run("!mag", 0.9, 0.89, 0.89, seed))]
    (verdict,) = verdicts(runs)
    # 4 of 400 images on each of two seeds: the two disagree on at least 8 images.
    assert verdict.noise == pytest.approx(196 * math.sqrt(8) / 800)


def test_the_paired_interval_is_students_t() -> None:
    values = [0.2, -0.1, 0.5, 0.3]
    mean, half = paired_interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert half == pytest.approx(3.1824 * statistics.stdev(values) / 2, rel=1e-4)


def test_configurations_that_differ_in_unnamed_settings_are_not_mixed() -> None:
    runs = [
        run("p50", 0.9, 0.9, 0.9, protocol="a"), run("!mag", 0.9, 0.8, 0.80, protocol="a", settings="x"),
        run("!mag", 0.9, 0.7, 0.95, protocol="a", settings="y"), run("!lamp", 0.9, 0.99, 0.99, protocol="b"),
    ]  # fmt: skip
    for order in (runs, runs[::-1]):
        (verdict,) = verdicts(order)
        assert verdict.better == pytest.approx(10.0)  # against the better on validation, whatever was read last


def test_configurations_with_fewer_seeds_do_not_win() -> None:
    runs = [run("lucky", 0.9, 0.99, 0.99, seed=0)]
    for seed in (0, 1):
        runs += [run("p50", 0.9, 0.9, 0.9, seed), run("!mag", 0.9, 0.92, 0.92, seed)]
    (verdict,) = verdicts(runs)
    assert verdict.strategy[0].strategy == "p50"
    assert verdict.words == "baseline wins"  # by exactly as much with each seed


def test_only_equal_sparsities_and_protocols_are_compared() -> None:
    runs = [run("p30", 0.5, 0.9, 0.9), run("!mag", 0.9, 0.9, 0.9), run("p90", 0.905, 0.9, 0.9)]
    (verdict,) = verdicts(runs)
    assert verdict.sparsities == (0.9, 0.905)
    assert [len(band) for band in bands(runs)] == [1, 2]
    assert verdicts([run("p30", 0.9, 0.9, 0.9, reconstruct="least_squares"), run("!mag", 0.9, 0.9, 0.9)]) == []


def test_no_verdict_without_both_kinds_or_a_common_seed() -> None:
    assert verdicts([]) == []
    assert verdicts([run("p30", 0.5, 0.9, 0.9)]) == []
    assert verdicts([run("!mag", 0.5, 0.9, 0.9)]) == []
    assert verdicts([run("p30", 0.5, 0.9, 0.9, seed=0), run("!mag", 0.5, 0.9, 0.9, seed=1)]) == []


def test_the_table_has_the_verdict_in_words() -> None:
    group = Group("cnn", "digits", [run("p30", 0.9, 0.93, 0.94), run("!mag", 0.9, 0.5, 0.5)])
    table = verdicts_table(group)
    (row,) = table.rows
    assert len(row) == len(table.headings)
    assert [row[0], *row[2:7]] == ["90.0", "magnitude/p30", "+1.00", "mag/baseline", "+45.00", "+44.00"]
    assert row[-2:] == ["1", "strategy wins"]
    assert verdicts_table(Group("cnn", "digits", [run("p30", 0.9, 0.93, 0.94)])).rows == []
