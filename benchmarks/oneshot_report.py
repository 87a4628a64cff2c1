"""Writes docs/oneshot.md's tables and its picture from the rows of the one-shot benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.oneshot_layers import layers_table, read_layers
from benchmarks.oneshot_networks import NETWORKS
from benchmarks.oneshot_picture import draw
from benchmarks.oneshot_tables import accuracy_table, gain_table, pictures_table, seconds_table
from benchmarks.row_files import Row
from benchmarks.tables import fill_page
from mmp.errors import MmpError

PAGE = Path("docs/oneshot.md")


def write_report(rows: Sequence[Row]) -> None:
    """Write the tables into their places in docs/oneshot.md, and draw its picture.

    Raises:
        MmpError: if rows were measured with different settings, or the page has no place for a table.
    """
    require_one_protocol(rows)
    tables = {f"oneshot: {network}": accuracy_table(rows, network) for network in NETWORKS}
    others = {"gain": gain_table, "pictures": pictures_table, "seconds": seconds_table}
    tables |= {f"oneshot: {name}": table(rows) for name, table in others.items()}
    tables["oneshot: layers"] = layers_table(read_layers())
    fill_page(PAGE, tables)
    draw(rows)


def require_one_protocol(rows: Iterable[Row]) -> None:
    """Raise an error if rows differ in the settings that they share.

    Raises:
        MmpError: if so; the message names two protocols.
    """
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        other = found.setdefault(tuple(row[key] for key in ("network", "solved", "seed", "images", "steps")), row)
        if other["protocol"] != row["protocol"]:
            raise MmpError(
                f"rows of {row['network']}, {row['solved']}, seed {row['seed']} have the protocols "
                f"{other['protocol']} and {row['protocol']}; remove the older rows from the file"
            )
