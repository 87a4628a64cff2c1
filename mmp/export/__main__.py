"""``python -m mmp.export``: export runs to files for a device, each with a card that states its measurements.

``python -m mmp.export RUN_FOLDER target=onnx,sparse`` writes the file, export.json and README.md to
``RUN_FOLDER/export/<target>/``. ``python -m mmp.export SWEEP_FOLDER target=onnx select=pareto`` exports the selected
runs of a sweep.
"""

from __future__ import annotations

from mmp.openmp import bound_spin

if __name__ == "__main__":
    bound_spin()  # before torch is imported

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmp.config.command import import_from_working_folder
from mmp.config.home import home_path
from mmp.config.interruption import Interrupted, in_one_line
from mmp.errors import MmpError, nearest
from mmp.export.card import as_line
from mmp.export.source import DATA_KEYS
from mmp.export.targets import TARGETS, Target, load_target
from mmp.export.write import Options, export_run, runs_to_export
from mmp.report.conditions import conditions_help


@in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Export the runs that the command line names.

    Args:
        arguments: The arguments of the command line; None for ``sys.argv``.

    Returns:
        The exit code: 0 if every export succeeded or was up to date, 1 otherwise, 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    import_from_working_folder()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmp").setLevel(logging.INFO)  # shows if another process holds the run's lock
    try:
        names, options = read_options(parsed.settings)
        targets = [load_target(name) for name in names]
        folders = runs_to_export(parsed.folder, options.select)
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    succeeded = True
    for folder in folders:
        try:
            succeeded &= _export(folder, targets, options)
        except (MmpError, OSError) as error:
            succeeded = False
            sys.stderr.write(f"error: {error}\n")
        except KeyboardInterrupt as error:
            raise Interrupted.by(error, f" at {folder}; the same command exports what is missing") from None
    return 0 if succeeded else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmp-export",
        description="Export pruned models to files for a device, and measure the files in their engine.",
        epilog=f"targets: {', '.join(TARGETS)} (several with commas)\n"
        "select=pareto, select=all, or comparisons of these fields, joined with commas:\n" + conditions_help() + "\n"
        "seconds=3: seconds of timing for each batch size (0: no timing)\n"
        "force=true: repeat exports that are up to date\n"
        f"{', '.join(f'data.{name}=' for name in DATA_KEYS)}: where the images are, and how to read them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=home_path, help="folder of a run or of a sweep")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="target=onnx,sparse select=pareto force=true")
    return parser


def _export(folder: Path, targets: Sequence[Target], options: Options) -> bool:
    """Export a run and print a line for each target; return whether all of them succeeded."""
    console, succeeded = Console(soft_wrap=True, highlight=False, markup=False), True
    for outcome in export_run(folder, targets, options):
        if outcome.result is None:
            succeeded = False
            sys.stderr.write(f"error: {outcome.error}\n")
        else:
            note = ", already there" if outcome.status == "unchanged" else ""
            console.print(f"{as_line(outcome.result)}{note}: {outcome.folder}")
    return succeeded


def read_options(settings: Sequence[str]) -> tuple[list[str], Options]:
    """Return the targets and options of a command line.

    Args:
        settings: Words of the form ``key=value``.

    Raises:
        MmpError: if a word has another form, a key is unknown, or a value is invalid.
    """
    targets, options = list[str](), Options()
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise MmpError(f"{setting}: must be key=value, such as target=onnx")
        if key == "target":
            targets += value.split(",")
        elif key in _READERS:
            options = replace(options, **{key: _READERS[key](value, options)})
        elif key.startswith("data."):
            options = replace(options, data=(*options.data, setting))
        else:
            hint = nearest(key, ["target", *_READERS, *(f"data.{name}" for name in DATA_KEYS)])
            raise MmpError(f"{key}: no such key; {hint}")
    if not targets:
        raise MmpError(f"target: must be set, with target=...; choose from: {', '.join(TARGETS)}")
    return list(dict.fromkeys(targets)), options


def _select(value: str, options: Options) -> str:
    if options.select is not None:
        raise MmpError(f"select={value}: select is set twice; join conditions with commas, for runs that meet all")
    return value


def _force(value: str, _: Options) -> bool:
    if value not in ("true", "false"):
        raise MmpError(f"force={value}: must be true or false")
    return value == "true"


def _seconds(value: str, _: Options) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise MmpError(f"seconds={value}: must be a number, at least 0")
    return seconds


_READERS: dict[str, Callable[[str, Options], Any]] = {"select": _select, "force": _force, "seconds": _seconds}


if __name__ == "__main__":
    sys.exit(main())
