"""``python -m mmp.workspace ENTITY``: save a view of sweeps in W&B, with charts and tables of their runs.

Needs the package ``wandb-workspaces`` and a W&B account. ``--dry-run`` needs no account and prints the view instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mmp.openmp import bound_spin

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def make_workspace(entity: str, project: str = "mmp", group: str | None = None) -> Workspace:
    """Return a view of a W&B project: accuracy against sparsity, parallel coordinates, tables and curves.

    Args:
        entity: W&B user or team.
        project: W&B project.
        group: Name of the sweep whose runs the view shows; None for all runs.
    """
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces import workspaces

    axes = ("signal", "strategy", "sparsity", "size_mb", "drop", "accuracy")
    columns = [panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(axis)) for axis in axes]
    curves: list[Any] = [
        panels.LinePlot(title=metric, x="trainer/global_step", y=[metric])
        for metric in ("val/accuracy", "train/loss", "sparsity")
    ]
    sweep: list[Any] = [
        panels.ScatterPlot(
            title="Accuracy against sparsity", x=panels.SummaryMetric("sparsity"), y=panels.SummaryMetric("accuracy")
        ),
        panels.ScatterPlot(
            title="Accuracy drop (points) against size (MB)",
            x=panels.SummaryMetric("size_mb"),
            y=panels.SummaryMetric("drop"),
        ),
        panels.ParallelCoordinatesPlot(title="Signal, strategy, size, accuracy", columns=columns),
        panels.MediaBrowser(title="Pareto front", media_keys=["pareto"]),
        panels.WeavePanelSummaryTable(table_name="results"),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Pruning: {group}" if group else "Pruning",
        sections=[
            workspaces.Section(name="Sweep", panels=sweep, is_open=True),
            workspaces.Section(name="Layers", panels=[panels.WeavePanelSummaryTable(table_name="layers")]),
            workspaces.Section(name="Training", panels=curves),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == group] if group else "",
            pinned_columns=[f"summary:{axis}" for axis in axes],
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the view in W&B, or print it as JSON.

    Args:
        arguments: The arguments of the command line; None for ``sys.argv``.

    Returns:
        The exit code: 0, or 1 if the package ``wandb-workspaces`` is missing.
    """
    bound_spin()
    parser = argparse.ArgumentParser(prog="mmp-workspace", description="Save a view of sweeps in W&B.")
    parser.add_argument("entity", help="W&B user or team")
    parser.add_argument("--project", default="mmp", help="W&B project (default: mmp)")
    parser.add_argument("--group", help="show only the runs of this sweep (default: all runs of the project)")
    parser.add_argument("--dry-run", action="store_true", help="print the view as JSON and contact no server")
    options = parser.parse_args(arguments)
    if not find_spec("wandb_workspaces"):
        sys.stderr.write("error: the package wandb-workspaces is not installed: pip install wandb-workspaces\n")
        return 1
    workspace = make_workspace(options.entity, options.project, options.group)
    if options.dry_run:
        sys.stdout.write(json.dumps(workspace._to_model().model_dump(by_alias=True, mode="json"), indent=2) + "\n")
    else:
        workspace.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
