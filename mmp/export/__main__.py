"""Exports: a run folder -> a file for a device, run in its own engine, and a card that says what came of it.

``python -m mmp.export RUN_FOLDER target=onnx,sparse`` writes ``RUN_FOLDER/export/<target>/`` with the file, export.json
and README.md. ``python -m mmp.export SWEEP_FOLDER target=onnx select=pareto`` does so for the runs that are chosen.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mmp.errors import MmpError, nearest
from mmp.export.card import as_line
from mmp.export.source import DATA_KEYS
from mmp.export.targets import TARGETS, load_target
from mmp.export.write import Options, export_run, runs_to_export
from mmp.report.conditions import conditions_help

log = logging.getLogger(__name__)


def read_options(settings: Sequence[str]) -> tuple[list[str], Options]:
    """Return targets and options of a command line.

    Raises:
        MmpError: on a word that is no ``key=value``, an unknown key with the nearest, or a wrong value.
    """
    targets, options = list[str](), Options()
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise MmpError(f"{setting}: must be key=value, such as target=onnx")
        if key == "target":
            targets += value.split(",")
        elif key == "select":
            if options.select is not None:
                raise MmpError(f"{setting}: select is set already; join conditions by commas, for runs that meet all")
            options = replace(options, select=value)
        elif key == "force":
            if value not in ("true", "false"):
                raise MmpError(f"{setting}: must be true or false")
            options = replace(options, force=value == "true")
        elif key == "seconds":
            options = replace(options, seconds=_seconds(value))
        elif key.startswith("data."):
            options = replace(options, data=(*options.data, setting))
        else:
            told = nearest(key, ["target", "select", "force", "seconds", *(f"data.{name}" for name in DATA_KEYS)])
            raise MmpError(f"{key}: no such key; {told}")
    if not targets:
        raise MmpError(f"target: must be set, with target=...; choose from: {', '.join(TARGETS)}")
    return list(dict.fromkeys(targets)), options


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise MmpError(f"seconds={value}: must be a number, at least 0")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Export runs as the command line says.

    Returns:
        Exit code: 0 if everything asked for is there, 1 otherwise, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmp.export",
        description="Export pruned models to files for a device, and run them in their own engine.",
        epilog=f"targets: {', '.join(TARGETS)} (several with commas)\n"
        "select=pareto, select=all, or comparisons of these fields, joined by commas:\n" + conditions_help() + "\n"
        "seconds=3 of timing for each batch size (0: none), force=true to make again what is there\n"
        f"where the images lie here: {', '.join(f'data.{name}=' for name in DATA_KEYS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of a run, or of a sweep")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="target=onnx,sparse select=pareto force=true")
    parsed = parser.parse_args(arguments)
    console, failed = Console(soft_wrap=True, highlight=False, markup=False), False
    try:
        names, options = read_options(parsed.settings)
        targets = [load_target(name) for name in names]
        folders = runs_to_export(parsed.folder, options.select)
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for folder in folders:
        try:
            for outcome, place, content in export_run(folder, targets, options):
                if outcome == "failed":
                    failed = True
                    sys.stderr.write(f"error: {content['error']}\n")
                else:
                    console.print(f"{as_line(content)}{', already there' if outcome == 'there' else ''}: {place}")
        except (MmpError, OSError) as error:
            failed = True
            sys.stderr.write(f"error: {error}\n")
        except KeyboardInterrupt:
            sys.stderr.write(f"interrupted at {folder}\n")
            return 130
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmp").setLevel(logging.INFO)  # that another process is waited for
    sys.exit(main())
