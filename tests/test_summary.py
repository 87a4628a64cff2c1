"""The ten lines: what they choose by, what they claim, and that they say no more than the noise allows."""

from __future__ import annotations

from pathlib import Path

from result_files import full_sweep
from test_verdict import run

from mmp.configurations import Group, groups_of
from mmp.results import load_runs
from mmp.summary import rivals, summary_of


def lines(*runs: object) -> list[str]:
    return summary_of(Group("cnn", "digits", list(runs)))  # type: ignore[arg-type]


def line(found: list[str], begin: str) -> str:
    (one,) = (text for text in found if text.startswith(begin))
    return one


def test_a_full_sweep_takes_ten_lines_at_most(tmp_path: Path) -> None:
    (group,) = groups_of(load_runs(full_sweep(tmp_path)))
    assert len(summary_of(group)) <= 10
    assert summary_of(group)[0].startswith("cnn on digits: 30 configurations x 3 seeds; dense 97.50 ± 0.00 %")


def test_the_best_of_a_band_is_chosen_on_validation() -> None:
    found = lines(run("p30", 0.6, 0.93, 0.80), run("p50", 0.6, 0.92, 0.94))
    assert "magnitude/p30 at 60.0 %, drop +15.00" in line(found, "50 to 70 %")


def test_what_lands_on_a_bands_edge_belongs_to_the_band_below() -> None:
    found = lines(run("p30", 0.9003, 0.9, 0.9), run("p50", 0.95, 0.9, 0.9))
    assert "magnitude/p30" in line(found, "80 to 90 %")
    assert "magnitude/p50" in line(found, "90 to 100 %")


def test_one_lucky_seed_is_not_the_best_of_a_band() -> None:
    found = lines(run("lucky", 0.6, 0.99, 0.99), *(run("p50", 0.6, 0.9, 0.9, seed) for seed in (0, 1)))
    assert "magnitude/p50" in line(found, "50 to 70 %")
    assert "1 runs missing" in found[0]


def test_rivals_are_those_that_paired_seeds_do_not_tell_apart() -> None:
    def configurations(name: str, *tests: float) -> list[object]:
        return [run(name, 0.6, test, test, seed, masks_hash=name) for seed, test in enumerate(tests)]

    runs = [
        *configurations("best", 0.95, 0.94, 0.93),
        *configurations("worse by the same each time", 0.940, 0.931, 0.919),
        *configurations("now better, now worse", 0.93, 0.96, 0.92),
    ]
    group = Group("cnn", "digits", runs)  # type: ignore[arg-type]
    by_name = {one.name.partition("/")[2]: one for one in group.configurations}
    assert [one.name for one in rivals(by_name["best"], group.configurations)] == ["magnitude/now better, now worse"]
    found = summary_of(group)
    assert "not told apart by test accuracy: magnitude/now better, now worse." in line(found, "50 to 70 %")


def test_baselines_are_beaten_by_points_and_ratio_over_seeds() -> None:
    runs = []
    for seed, shift in enumerate((0.0, 0.001, 0.0)):
        runs += [run("p90", 0.9, 0.93, 0.93 + shift, seed), run("!lamp", 0.9, 0.91, 0.91, seed)]
        runs += [run("p50", 0.5, 0.94, 0.94 + 10 * shift, seed), run("!mag", 0.5, 0.94, 0.94, seed)]
    told = line(lines(*runs), "Strategies against baselines")
    assert "at 90.0 % magnitude/p90 beats lamp/baseline by 2.03 ± 0.14 points" in told
    assert "(drop +1.97 against +4.00, 0.49 of it; 3 seeds)" in told
    assert "at 50.0 % neither is better than the noise" in told


def test_a_lost_comparison_is_told_as_plainly() -> None:
    runs = [r for s in (0, 1) for r in (run("p90", 0.9, 0.9, 0.9, s), run("!lamp", 0.9, 0.93, 0.93, s))]
    assert "magnitude/p90 loses to lamp/baseline by 3.00 ± 0.00 points" in line(lines(*runs), "Strategies")


def test_noise_counts_seeds_and_repetitions() -> None:
    found = lines(*(run(name, 0.5, 0.9, 0.9 + 0.01 * seed, seed) for name in ("p50", "balanced") for seed in (0, 1)))
    told = line(found, "Noise")
    assert "one standard error of a test accuracy is 1.09 points" in told  # sqrt(0.95 * 0.05 / 400)
    assert "over seeds a drop varies by 0.71 points" in told
    assert "2 runs repeated with identical masks differ by up to 0.00 points" in told
