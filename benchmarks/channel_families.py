"""Families of networks whose channels can be removed, by mmp and by Torch-Pruning.

``python -m benchmarks.channel_families measure`` removes half of the channels of every group of a small timm model of
each family, with random weights, in both ways. It appends a row for each to
``benchmarks/results/channel_families.jsonl``; measured rows are skipped, and ``force=true`` measures again.
``python -m benchmarks.channel_families report`` prints the table.

A smaller network runs if it returns logits of the right shape. It computes the same if its logits are those of the
network with zeros in place of the removed weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import RESULTS, torch_pruning
from benchmarks.channel_networks import Shrinker, difference_of, network_of, parameters_of
from mmp import MmpError, channel_groups
from mmp.markdown import table_of
from mmp.pruning.channels.shrink import TOLERANCE

ROWS = RESULTS / "channel_families.jsonl"
OURS, THEIRS = "mmp", "Torch-Pruning"
HALF = 0.5
FAMILIES = {
    "VGG": "vgg11",
    "ResNet": "resnet18",
    "DenseNet": "densenet121",
    "RegNet": "regnety_002",
    "MobileNetV3": "mobilenetv3_small_100",
    "EfficientNet": "efficientnet_b0",
    "ConvNeXt": "convnext_atto",
    "FastViT": "fastvit_t8",
    "PoolFormer": "poolformer_s12",
    "MLP-Mixer": "mixer_s32_224",
    "DeiT": "deit_tiny_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "LeViT": "levit_128s",
    "PiT": "pit_ti_224",
    "MobileViT": "mobilevit_xxs",
    "EdgeNeXt": "edgenext_xx_small",
    "EfficientFormer": "efficientformer_l1",
}

Row = dict[str, Any]


def read_rows() -> dict[tuple[str, str], Row]:
    """Return the latest row of each model and tool."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.is_file() else []
    return {(row["model"], row["tool"]): row for row in map(json.loads, lines)}


def measure(force: bool) -> None:
    """Measure what is missing, and write a row after each removal."""
    known = {} if force else read_rows()
    tools = [OURS, THEIRS] if torch_pruning.is_installed() else [OURS]
    for model in FAMILIES.values():
        missing = [tool for tool in tools if (model, tool) not in known]
        if missing:
            images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
            network = network_of(model, images)
        for tool in missing:
            row = {"model": model, "tool": tool, **_removed(tool, network, images)}
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(f"{row}\n")


def _removed(tool: str, network: nn.Module, images: Tensor) -> Row:
    """Return what a tool removes from a network, or the reason why it cannot."""
    start = time.process_time()
    try:
        facts, masked, smaller = _half(tool, network, images)
        seconds = time.process_time() - start
        with torch.no_grad():
            smaller(images[:1])
        if masked is None:
            masked = torch_pruning.masked(network, images, facts.pop("history"))
        difference = difference_of(smaller, masked, torch.randn(2, 3, 224, 224))
    except Exception as error:  # a network whose shapes do not fit together can raise any exception
        return {"problem": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    gone = 1 - parameters_of(smaller) / parameters_of(network)
    return {"parameters": gone, "difference": difference, "seconds": round(seconds, 1), **facts}


def _half(tool: str, network: nn.Module, images: Tensor) -> tuple[Row, nn.Module | None, nn.Module]:
    """Return facts, the network with zeros if it is known, and the smaller network."""
    if tool == THEIRS:
        smaller, history = torch_pruning.pruned(network, images, HALF)
        return {"history": history}, None, smaller
    groups = channel_groups(network, images[:1])
    masked, smaller, removal = Shrinker(network, groups, images[:2]).with_share(HALF)
    return {"groups": len(groups), "kept": len(removal.kept)}, masked, smaller


def report() -> str:
    """Return the table."""
    rows, lines = read_rows(), []
    for family, model in FAMILIES.items():
        cells = [_cells(rows.get((model, tool))) for tool in (OURS, THEIRS)]
        lines.append([family, model, *cells[0], *cells[1]])
    names = ["runs", "parameters gone %", "computes the same"]
    table = table_of(["family", "model", *(f"{tool}: {name}" for tool in (OURS, THEIRS) for name in names)], lines)
    return "\n\n".join([table, *(_counted(rows, tool) for tool in (OURS, THEIRS) if any(by == tool for _, by in rows))])


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    if "problem" in row:
        return [f"no ({row['problem']})", "", ""]
    same = "yes" if row["difference"] <= TOLERANCE else f"no, differs by {row['difference']:.1g}"
    kept = f", {row['kept']} of {row['groups']} groups stay" if row.get("kept") else ""
    return ["yes" + kept, f"{100 * row['parameters']:.0f}", same]


def _counted(rows: dict[tuple[str, str], Row], tool: str) -> str:
    found = [row for (_, by), row in rows.items() if by == tool]
    ran = [row for row in found if "problem" not in row]
    same = sum(row["difference"] <= TOLERANCE for row in ran)
    return f"{tool}: {len(ran)} of {len(found)} run, {same} compute the same as with zeros."


def main(words: Sequence[str]) -> str:
    """Run the command on the command line and return what it prints."""
    command, *settings = words or [""]
    if command not in {"measure", "report"} or set(settings) - {"force=true"}:
        raise MmpError("python -m benchmarks.channel_families measure [force=true], or report")
    if command == "measure":
        measure("force=true" in settings)
    return report()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(main(sys.argv[1:]) + "\n")
