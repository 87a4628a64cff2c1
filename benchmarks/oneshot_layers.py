"""Which layers of a network lose what pruning costs: each kind of layer pruned alone, without re-solving.

``python -m benchmarks.oneshot_layers network=... checkpoint=FILE root=FOLDER sparsities=0.5`` prunes a network by LAMP,
once as a whole, and once each kind and each stage of its layers alone. The divergence from the dense network on
validation pictures is kept in ``benchmarks/results/oneshot_layers.jsonl``, for docs/oneshot.md.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import mmp
from benchmarks import RESULTS
from benchmarks.oneshot_networks import RUN
from benchmarks.oneshot_request import Request
from benchmarks.pruning_runs import configured
from mmp.errors import MmpError
from mmp.files import write_text
from mmp.markdown import table_of
from mmp.models.networks import build_model
from mmp.models.weights import load_weights
from mmp.pruning.layers.layer import Layer

ROWS = RESULTS / "oneshot_layers.jsonl"
ALL = "all layers"
BLOCK = re.compile(r"\.(\d+)\.\w+$")  # the number of a block in its stage, before the name of its layer


def kind_of(layer: Layer) -> str:
    """Return the name of a layer in its block."""
    return layer.module.rpartition(".")[2]


def place_of(layer: Layer) -> str:
    """Return the name of a layer in its block, and whether that is the first block of its stage."""
    found = BLOCK.search(layer.module)
    return kind_of(layer) + (f", {'later blocks' if int(found[1]) else 'first blocks'}" if found else "")


GROUPINGS: dict[str, Callable[[Layer], str]] = {
    "layers": kind_of,
    "place": place_of,
    "stage": lambda layer: "none" if layer.stage is None else str(layer.stage + 1),
}

Batches = Sequence[tuple[Tensor, Tensor]]


def measure(request: Request) -> list[dict[str, Any]]:
    """Return a row for the whole network, for each kind of its layers, and for each stage."""
    settings = [*RUN, *request.network.settings, f"data.root={request.root}", f"model.checkpoint={request.checkpoint}"]
    config = configured(settings)
    data = request.network.data(config.data, 0, request.network.images[-1])
    batches = [(images, labels) for images, labels in data.val_dataloader()]
    dense = build_model(config.model)
    load_weights(dense, Path(request.checkpoint), key="checkpoint")
    dense.eval()
    return [row for sparsity in request.sparsities for row in rows_of(dense, sparsity, batches, request.name)]


def rows_of(dense: nn.Module, sparsity: float, batches: Batches, network: str) -> list[dict[str, Any]]:
    """Return the rows of a network.

    Args:
        dense: The network.
        sparsity: Share of the prunable weights to remove.
        batches: Validation pictures with their classes.
        network: Its name.
    """
    masks = mmp.prune(dense, sparsity, criterion="lamp").masks
    layers = {layer.name: layer for layer in mmp.prunable_layers(dense)}
    wanted, classes = logits_of(dense, batches), torch.cat([labels for _, labels in batches])
    parts = {(ALL, ""): [*masks]}
    for grouping, name_of in GROUPINGS.items():
        for name in masks:
            parts.setdefault((grouping, name_of(layers[name])), []).append(name)
    rows = []
    for (grouping, part), names in parts.items():
        logits = logits_of(pruned(dense, {name: masks[name] for name in names}), batches)
        weights = sum(masks[name].numel() for name in names)
        rows.append(
            {
                "network": network, "sparsity": sparsity, "grouping": grouping, "part": part, "weights": weights,
                "pruned": 1 - sum(int(masks[name].sum()) for name in names) / weights,
                "divergence": divergence(logits, wanted),
                "accuracy": float((logits.argmax(1) == classes).double().mean()),
            }
        )  # fmt: skip
    return rows


def pruned(dense: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Return a copy of a network under some masks."""
    network = copy.deepcopy(dense)
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    return network


@torch.no_grad()
def logits_of(network: nn.Module, batches: Batches) -> Tensor:
    """Return the logits of all pictures, (N, classes)."""
    return torch.cat([network(part) for images, _ in batches for part in images.split(64)])


def divergence(logits: Tensor, wanted: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of the class probabilities from the dense network's, in nats."""
    followed, target = (log_softmax(values.double(), 1) for values in (logits, wanted))
    return float(kl_div(followed, target, reduction="batchmean", log_target=True))


def layers_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table of docs/oneshot.md."""
    lines = [
        [
            row["network"], " ".join(filter(None, (row["grouping"], row["part"]))), f"{row['weights'] / 1e6:.2f}",
            f"{100 * row['pruned']:.0f} %", f"{row['divergence']:.4f}", f"{100 * row['accuracy']:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    headings = ["network", "layers", "weights, 10^6", "pruned", "divergence, nats", "accuracy on validation, %"]
    return table_of(headings, lines) if lines else "Not measured."


def read_layers() -> list[dict[str, Any]]:
    """Return the rows that were measured."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.is_file() else []


def main(words: Sequence[str]) -> None:
    """Measure the network on the command line, in place of its earlier rows.

    Raises:
        MmpError: if the command line is wrong.
    """
    request = Request.of(words)
    if ignored := {word.partition("=")[0] for word in words} - {"network", "checkpoint", "root", "sparsities"}:
        raise MmpError(f"{', '.join(sorted(ignored))}: not read here; state network, checkpoint, root and sparsities")
    found = measure(request)
    others = [row for row in read_layers() if row["network"] != request.name]
    write_text(ROWS, "".join(json.dumps(row) + "\n" for row in [*others, *found]))


if __name__ == "__main__":
    main(sys.argv[1:])
