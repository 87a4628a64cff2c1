"""The ten lines of a summary: what they choose by, what they claim, and that they claim nothing within the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hand_made_runs import run
from result_files import full_sweep

from mmp.report.groups import Group, groups_of
from mmp.report.results import Run, load_runs
from mmp.report.summary import standing, summary_of


def lines(*runs: Run) -> list[str]:
    return summary_of(Group("cnn", "digits", list(runs)))


def line(found: list[str], begin: str) -> str:
    (one,) = (each for each in found if each.startswith(begin))
    return one


def band(found: list[str], percent: str) -> str:
    return line(found, f"Best on validation, {percent} % sparsity:")


def test_a_full_sweep_takes_ten_lines_at_most(tmp_path: Path) -> None:
    (group,) = groups_of(load_runs(full_sweep(tmp_path)))
    assert len(summary_of(group)) <= 10
    assert summary_of(group)[0].startswith(
        "cnn on digits: 30 configurations x 3 seeds. Dense model: test accuracy 97.50 ± 0.00 %"
    )


def test_the_best_of_a_band_is_chosen_on_validation() -> None:
    found = lines(run("p30", 0.6, 0.93, 0.80), run("p50", 0.6, 0.92, 0.94))
    assert "magnitude/p30 at 60.0 %, drop +15.00 points" in band(found, "50 to 70")


def test_a_sparsity_at_the_edge_of_a_band_belongs_to_the_band_below() -> None:
    found = lines(run("p30", 0.9003, 0.9, 0.9), run("p50", 0.95, 0.9, 0.9))
    assert "magnitude/p30" in band(found, "80 to 90")
    assert "magnitude/p50" in band(found, "90 to 100")


def test_one_lucky_seed_is_not_the_best_of_a_band() -> None:
    found = lines(run("lucky", 0.6, 0.99, 0.99), *(run("p50", 0.6, 0.9, 0.9, seed) for seed in (0, 1)))
    assert "magnitude/p50" in band(found, "50 to 70")
    assert "1 run missing" in found[0]


def configurations(name: str, *tests: float, first: int = 0, **changes: str) -> list[Run]:
    seeds = enumerate(tests, start=first)
    return [run(name, 0.6, test, test, seed, masks_hash=name, **changes) for seed, test in seeds]


def test_the_others_of_a_band_are_compared_with_the_best_by_paired_seeds() -> None:
    runs = [
        *configurations("best", 0.95, 0.94, 0.93),
        *configurations("worse each time", 0.910, 0.901, 0.889),
        *configurations("now better, now worse", 0.93, 0.96, 0.92),
    ]
    group = Group("cnn", "digits", runs)
    by_name = {one.name.partition("/")[2]: one for one in group.configurations}
    assert standing(by_name["best"], by_name["worse each time"]) == "better"
    assert standing(by_name["worse each time"], by_name["best"]) == "worse"
    text = band(summary_of(group), "50 to 70")
    assert text.endswith("On test: within the noise of magnitude/now better, now worse; better than the other 1.")


def test_a_choice_that_is_worse_on_test_is_named() -> None:
    runs = configurations("best", 0.88, 0.87, 0.89) + configurations("other", 0.95, 0.94, 0.96)
    runs = [replace(r, validation=0.99) if r.strategy == "best" else r for r in runs]
    text = band(lines(*runs), "50 to 70")
    assert "magnitude/best at" in text
    assert text.endswith("On test: worse than magnitude/other.")


def test_configurations_with_the_same_masks_are_not_compared() -> None:
    runs = [replace(r, masks_hash="one") for name in ("p50", "balanced") for r in configurations(name, 0.9, 0.91)]
    assert band(lines(*runs), "50 to 70").endswith("MB. On test: same masks as magnitude/p50.")


def test_without_a_seed_in_common_nothing_is_claimed() -> None:
    text = band(lines(*configurations("best", 0.95), *configurations("other", 0.5, first=1)), "50 to 70")
    assert text.endswith("On test: no common seed with magnitude/other.")


def test_two_seeds_that_agree_by_chance_prove_nothing() -> None:
    # One image of 400 on each of two seeds, exactly as much: Student's t alone would be sure of it.
    runs = [*configurations("best", 0.9500, 0.9400), *configurations("other", 0.9475, 0.9375)]
    text = band(lines(*runs), "50 to 70")
    assert "On test: within the noise of magnitude/other" in text


def test_overrides_distinguish_configurations_of_the_same_name() -> None:
    runs = [
        run(
            "p50",
            0.6,
            0.9 - rate,
            0.9,
            settings=str(rate),
            overrides=("strategy=p50", f"finetune.learning_rate={rate}"),
        )
        for rate in (0.001, 0.01)
    ]
    found = lines(*runs)
    assert "magnitude/p50 finetune.learning_rate=0.001 at" in band(found, "50 to 70")


def test_settings_that_vary_are_in_the_names() -> None:
    runs = [run("p50", 0.6, 0.9 - i / 100, 0.9, finetune=name) for i, name in enumerate(("none", "strong"))]
    assert "magnitude/p50 finetune=none at" in band(lines(*runs), "50 to 70")


def test_a_win_has_its_points_interval_and_ratio() -> None:
    runs = []
    for seed, shift in enumerate((0.0, 0.001, 0.0)):
        runs += [run("p90", 0.9, 0.93, 0.93 + shift, seed), run("!lamp", 0.9, 0.91, 0.91, seed)]
        runs += [run("p50", 0.5, 0.94, 0.94 + 10 * shift, seed), run("!mag", 0.5, 0.94, 0.94, seed)]
    text = line(lines(*runs), "Best strategy against best baseline")
    assert (
        "at 90.0 % sparsity, magnitude/p90 beats lamp/baseline by 2.03 ± 0.81 points" in text
    )  # by the images; by seeds alone, ± 0.14
    assert "(drop +1.97 against +4.00, ratio 0.49; 3 seeds)" in text
    assert "within the noise at 50.0 % sparsity" in text


def test_a_lost_comparison_is_named_as_well() -> None:
    runs = [r for s in (0, 1) for r in (run("p90", 0.9, 0.9, 0.9, s), run("!lamp", 0.9, 0.93, 0.93, s))]
    assert "magnitude/p90 loses to lamp/baseline by 3.00 ± 1.20 points" in line(lines(*runs), "Best strategy")


def test_noise_counts_seeds_and_repetitions() -> None:
    found = lines(*(run(name, 0.5, 0.9, 0.9 + 0.01 * seed, seed) for name in ("p50", "balanced") for seed in (0, 1)))
    text = line(found, "Noise")
    assert "the standard error of a test accuracy is 1.09 points" in text  # sqrt(0.95 * 0.05 / 400)
    assert "the standard deviation of a drop over seeds is 0.71 points" in text
    assert "runs with identical masks differ by up to 0.00 points (2 cases)" in text
