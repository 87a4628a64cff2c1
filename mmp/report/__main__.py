"""``python -m mmp.report``: which pruned model of a sweep to ship, as ten lines, a page, tables and a picture.

``python -m mmp.report SWEEP_FOLDER`` reads every ``result.json`` below the folder and writes ``report/`` into it.
``python -m mmp.report A B`` compares two sweeps. The result files are the only source, besides the latencies that
exports have measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from mmp.config.home import home_path
from mmp.config.interruption import in_one_line
from mmp.errors import MmpError
from mmp.openmp import bound_spin
from mmp.report.content import Report
from mmp.report.write import write_comparison, write_report


@in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the report of a sweep, or the comparison of two sweeps.

    Args:
        arguments: The arguments of the command line; None for ``sys.argv``.

    Returns:
        The exit code: 1 if a run failed or there is an error, 130 after Ctrl-C, else 0.
    """
    bound_spin()
    parser = argparse.ArgumentParser(
        prog="mmp-report", description="Write the report of a sweep, or compare two sweeps."
    )
    parser.add_argument("folder", type=home_path, help="folder of a sweep")
    parser.add_argument("other", type=home_path, nargs="?", help="folder of a second sweep, to compare with the first")
    parser.add_argument("--tables", action="store_true", help="print the tables of all configurations, too")
    options = parser.parse_args(arguments)
    if options.other is not None and options.tables:
        parser.error("--tables applies to one sweep; the comparison of two sweeps always prints its table")
    reports: Sequence[Report]
    try:
        if options.other is None:
            reports = [write_report(options.folder, Console(), options.tables)]
        else:
            reports = write_comparison(options.folder, options.other, Console())
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
