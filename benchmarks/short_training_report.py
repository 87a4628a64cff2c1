"""Writes the tables and pictures of the short trainings: ``python -m benchmarks.short_training report``.

They belong to docs/short_training.md, and one picture to the README. A chosen configuration is the one with the best
mean validation accuracy over the seeds, as in a sweep's report. Comparisons use test accuracy. A drop is in points of
test accuracy against the dense model of the same seed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import difference, fill_page, spread
from mmp.markdown import table_of

PAGE = Path("docs/short_training.md")
PICTURE, HEADLINE = Path("docs/images/short_training.png"), Path("docs/images/headline.png")
PAPERS = ("mag", "snip", "grasp")  # the criteria that the paper compares with
SOLVED = "reconstruct=least_squares"
STRATEGY_PARTS = ("magnitude", "product", "gradient")
SOLVED_PARTS = ("magnitude, re-solved", "obs_fisher, re-solved", "allocations, re-solved")

Row = dict[str, Any]
BySeed = dict[int, Row]
Found = Mapping[tuple[str, str], BySeed]  # the rows of one model by part and settings, then by seed
Belongs = Callable[[str, str], bool]  # whether a part and its settings belong to one side of a comparison


def write_report(
    rows: Sequence[Row], recipes: Mapping[str, Sequence[str]], ablations: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Write the tables into their places in docs/short_training.md, and draw both pictures.

    Args:
        rows: The measured rows of results/short_training.jsonl.
        recipes: The settings of each recipe, by its name.
        ablations: The settings of each change of the ranges, by subject and by the change's name.
    """
    present = [name for name in ablations if any(row["subject"] == name for row in rows)]
    configurations = {name: by_configuration([r for r in rows if r["subject"] == name]) for name in present}
    tables = {
        "dense models": dense_table(configurations),
        "claims": claims_table(configurations),
        "signals": signals_table(configurations),
        "recipes": recipes_table(configurations, recipes),
        "ablations": ablations_table(configurations, ablations),
        **{f"every configuration of {name}": every_table(found) for name, found in configurations.items()},
    }
    fill_page(PAGE, tables)
    draw(configurations)
    draw_headline(configurations)


def by_configuration(rows: Iterable[Row]) -> dict[tuple[str, str], BySeed]:
    """Return the rows of one model by part and settings, then by seed."""
    found: dict[tuple[str, str], BySeed] = defaultdict(dict)
    for row in rows:
        found[row["part"], row["run"]][row["seed"]] = row
    return dict(found)


def drop(row: Row, stage: str = "finetuned") -> float:
    """Return the points of test accuracy below the dense model."""
    return 100 * (row["accuracy"]["dense"]["test"] - row["accuracy"][stage]["test"])


def validation(row: Row) -> float:
    """Return the validation accuracy, by which configurations are chosen."""
    return row["accuracy"]["finetuned"]["validation"]


def name_of(run: str) -> str:
    """Return a readable name for a configuration's settings."""
    words = [part.partition("=")[2] for part in run.split() if part != SOLVED]
    return "/".join(words) + (", re-solved" if SOLVED in run else "")


def baseline(names: Iterable[str] | None = None, *, solved: bool = False) -> Belongs:
    """Return a filter for baselines with these criteria (default: all), either re-solved or as published."""
    wanted = None if names is None else {f"criterion={name}" for name in names}

    def belongs(part: str, run: str) -> bool:
        is_baseline = part.startswith("baselines") and (SOLVED in run) is solved
        return is_baseline and (wanted is None or run.split(maxsplit=1)[0] in wanted)

    return belongs


def of_parts(*names: str) -> Belongs:
    """Return a filter for the runs of these parts of the study."""
    return lambda part, _: part in names


def chosen(found: Found, belongs: Belongs) -> BySeed:
    """Return the rows by seed of the configuration with the best mean validation accuracy, among those that belong.

    Configurations with fewer seeds than others are left out.
    """
    members = [by_seed for (part, run), by_seed in found.items() if belongs(part, run)]
    most = max(map(len, members), default=0)
    full = [by_seed for by_seed in members if len(by_seed) == most]
    return max(full, key=lambda by_seed: statistics.fmean(map(validation, by_seed.values())), default={})


def dense_table(configurations: Mapping[str, Found]) -> str:
    """Return the accuracy of the dense models, and their drop after the same fine-tuning without masks."""
    lines = []
    for model, found in configurations.items():
        rows = {seed: row for by_seed in found.values() for seed, row in by_seed.items()}
        dense = [100 * row["accuracy"]["dense"]["test"] for row in rows.values()]
        unpruned = [drop(row) for (part, _), by_seed in found.items() if part == "unpruned" for row in by_seed.values()]
        sparsity = max(row["sparsity"] for row in rows.values())
        cells = [model, str(len(dense)), spread(dense), spread(unpruned) if unpruned else "", f"{100 * sparsity:.0f}"]
        lines.append(cells)
    return table_of(["model", "seeds", "dense (%)", "drop if fine-tuned unpruned", "pruned to (%)"], lines)


def every_table(found: Found) -> str:
    """Return the strategies and baselines of one model, by rising drop."""
    lines = []
    for (part, run), by_seed in found.items():
        if part in ("recipes", "unpruned", "ablations"):
            continue
        drops = [drop(row) for row in by_seed.values()]
        before = "reconstructed" if SOLVED in run else "pruned"
        masked = [drop(row, before) for row in by_seed.values()]
        kind = "baseline" if "criterion=" in run else "strategy"
        shown = name_of(run).replace("/observed", ", observed ranges")
        lines.append((statistics.fmean(drops), [kind, shown, str(len(drops)), spread(masked), spread(drops)]))
    headings = ["kind", "configuration", "seeds", "drop before training", "drop"]
    return table_of(headings, [cells for _, cells in sorted(lines, key=lambda line: line[0])])


def claims_table(configurations: Mapping[str, Found]) -> str:
    """Return the comparisons: means of paired differences with their intervals, and ratios of mean drops."""
    comparisons = {
        "(a) ten strategies x three signals, against MAG, SNIP, GraSP": (of_parts(*STRATEGY_PARTS), baseline(PAPERS)),
        "ten strategies x three signals, against all baselines": (of_parts(*STRATEGY_PARTS), baseline()),
        "ten strategies (magnitude), against baselines; strong recipe": (
            lambda part, run: part == "strong" and "signal=" in run,
            lambda part, run: part == "strong" and "criterion=" in run,
        ),
        "(b) magnitude, against product": (of_parts("magnitude"), of_parts("product")),
        "(c) rules, against observed ranges (magnitude)": (of_parts("magnitude"), of_parts("observed")),
        "ours, re-solved, against all baselines as published": (of_parts(*SOLVED_PARTS), baseline()),
        "ours, re-solved, against six baselines, re-solved": (of_parts(*SOLVED_PARTS), baseline(solved=True)),
    }
    lines = []
    for model, found in configurations.items():
        for title, (one, other) in comparisons.items():
            ours, theirs = chosen(found, one), chosen(found, other)
            seeds = sorted(ours.keys() & theirs.keys())
            if not seeds:
                continue
            pairs = [(drop(ours[seed]), drop(theirs[seed])) for seed in seeds]
            mine, yours = (statistics.fmean(values) for values in zip(*pairs, strict=True))
            picked, against = (name_of(side[seeds[0]]["run"]) for side in (ours, theirs))
            ratio = f"{mine / yours:.2f}" if yours > 0 else ""
            better = difference([b - a for a, b in pairs])
            drops = [f"{mine:.2f}", f"{yours:.2f}", ratio]
            lines.append([model, title, *drops, better, str(len(pairs)), picked, against])
    numbers = ["drop", "other's drop", "ratio", "better by (95 %)", "seeds"]
    headings = ["model", "comparison", *numbers, "chosen", "against"]
    return table_of(headings, lines)


def signals_table(configurations: Mapping[str, Found]) -> str:
    """Return each signal's drop: the mean over its strategies, and the one chosen on validation."""
    lines = []
    for model, found in configurations.items():
        for signal in ("magnitude", "product", "gradient"):
            of_seed = defaultdict(list)
            for (part, _), by_seed in found.items():
                for seed, row in by_seed.items() if part == signal else ():
                    of_seed[seed].append(drop(row))
            if of_seed:
                best = chosen(found, of_parts(signal))
                means = [statistics.fmean(drops) for drops in of_seed.values()]
                lines.append([model, signal, spread(means), spread([drop(r) for r in best.values()]), str(len(means))])
    return table_of(["model", "signal", "mean of strategies", "chosen on validation", "seeds"], lines)


def recipes_table(configurations: Mapping[str, Found], recipes: Mapping[str, Sequence[str]]) -> str:
    """Return the drop of each recipe on the same masks, and its ratio to the drop of the paper's recipe."""
    lines = []
    for model, found in configurations.items():
        of_recipe = {
            name: found.get(("recipes", " ".join(("criterion=mag", *settings))), {})
            for name, settings in recipes.items()
        }
        for name, by_seed in of_recipe.items():
            seeds = sorted(by_seed.keys() & of_recipe["paper"].keys())
            if not seeds:
                continue
            mine, papers = ([drop(rows[seed]) for seed in seeds] for rows in (by_seed, of_recipe["paper"]))
            share = statistics.fmean(mine) / statistics.fmean(papers)
            better = difference([b - a for a, b in zip(mine, papers, strict=True)])
            lines.append([model, name, spread(mine), f"{share:.2f}", better, str(len(seeds))])
    return table_of(["model", "recipe", "drop", "of the paper's", "better by (95 %)", "seeds"], lines)


def ablations_table(
    configurations: Mapping[str, Found],
    ablations: Mapping[str, Mapping[str, Sequence[str]]],
) -> str:
    """Return the drop of the same strategies before and after each change of the ranges, and the paired difference."""
    lines = []
    for name, found in configurations.items():
        for change, settings in ablations[name].items():
            before, after = defaultdict(list), defaultdict(list)
            for (part, run), by_seed in found.items():
                if part != "ablations" or run.split()[2:] != list(settings):
                    continue
                unchanged = found.get(("magnitude", " ".join(run.split()[:2])), {})
                for seed in by_seed.keys() & unchanged.keys():
                    before[seed].append(drop(unchanged[seed]))
                    after[seed].append(drop(by_seed[seed]))
            if not after:
                continue
            was, becomes = ([statistics.fmean(drops) for drops in side.values()] for side in (before, after))
            cells = [name, change, spread(was), spread(becomes)]
            differences = [b - a for a, b in zip(becomes, was, strict=True)]
            lines.append([*cells, difference(differences), str(len(differences))])
    return table_of(["model", "change", "drop before", "drop after", "better by (95 %)", "seeds"], lines)


def draw(configurations: Mapping[str, Found]) -> None:
    """Draw the drop of every configuration: a panel per model, a line per kind, a dot per configuration and seed."""
    from matplotlib.figure import Figure

    kinds = {
        "baselines": "#7F7F7F", "baselines, re-solved": "#000000", "gradient": "#D55E00", "product": "#009E73",
        "magnitude": "#0072B2", "observed": "#56B4E9", "magnitude, re-solved": "#E69F00",
        "obs_fisher, re-solved": "#CC79A7", "allocations, re-solved": "#8C564B",
    }  # fmt: skip
    measured = {part for found in configurations.values() for part, _ in found}
    shown = {kind: colour for kind, colour in kinds.items() if kind in measured}
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    axes = figure.subplots(1, len(configurations), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (name, found) in zip(axes, configurations.items(), strict=True):
        for height, (part, colour) in enumerate(shown.items()):
            values = [drop(row) for (of, _), by_seed in found.items() if of == part for row in by_seed.values()]
            axis.scatter(values, [height] * len(values), s=14, color=colour, alpha=0.45, linewidths=0)
            best = chosen(found, of_parts(part))
            if best:
                mean = statistics.fmean(drop(row) for row in best.values())
                axis.scatter([mean], [height], s=90, color="black", marker="|", linewidths=2)
        axis.set_title(name)
        axis.grid(alpha=0.25, axis="x")
    ticks = (0, 1, 2, 5, 10, 20, 50)
    axes[0].set_xscale("symlog", linthresh=2, linscale=0.7)
    axes[0].set_xlim(-0.5, 90)
    axes[0].set_xticks(ticks, list(map(str, ticks)))
    axes[0].set_yticks(range(len(shown)), list(shown))
    figure.supxlabel(
        "drop in test accuracy (points), a dot per configuration and seed; | is the mean of the choice on validation"
    )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def draw_headline(configurations: Mapping[str, Found]) -> None:
    """Draw the drop of the criteria, of the best baselines, of the strategies and of our best: a panel per model.

    Each dot is the mean over seeds of the configuration chosen on validation, each bar the standard deviation.
    """
    from matplotlib.figure import Figure

    sides = {
        "GraSP": (baseline(["grasp"]), "#7F7F7F"),
        "MAG": (baseline(["mag"]), "#7F7F7F"),
        "SNIP": (baseline(["snip"]), "#7F7F7F"),
        "best of 11 baselines": (baseline(), "black"),
        "the ten strategies": (of_parts(*STRATEGY_PARTS), "#0072B2"),
        "best of 6 baselines, re-solved": (baseline(solved=True), "black"),
        "searched strategy, re-solved": (of_parts(*SOLVED_PARTS), "#D55E00"),
    }
    titles = {"cnn-90": "ResNet, 90 % pruned", "levit-85": "LeViT, 85 % pruned", "levit-92": "LeViT, 92 % pruned"}
    shown = {title: configurations[name] for name, title in titles.items() if name in configurations}
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, found) in zip(axes, shown.items(), strict=True):
        for height, (belongs, colour) in enumerate(sides.values()):
            drops = [drop(row) for row in chosen(found, belongs).values()]
            mean, deviation = statistics.fmean(drops), statistics.stdev(drops)
            axis.errorbar(mean, height, xerr=deviation, fmt="o", color=colour, markersize=6, elinewidth=2, capsize=3)
            axis.annotate(f"{mean:.2f}", (mean, height), (0, 6), textcoords="offset points", ha="center", color=colour)
        axis.set_title(title)
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    ticks = (0.1, 0.3, 1, 3, 10, 30)
    axes[0].set_xscale("log")
    axes[0].set_xlim(0.08, 100)
    axes[0].set_ylim(len(sides) - 0.4, -0.7)  # the first line on top
    axes[0].set_xticks(ticks, list(map(str, ticks)))
    axes[0].minorticks_off()
    axes[0].set_yticks(range(len(sides)), list(sides))
    figure.supxlabel(
        "points of test accuracy lost on Fashion-MNIST, mean and standard deviation of three seeds", size=10
    )
    figure.savefig(HEADLINE, dpi=110)
