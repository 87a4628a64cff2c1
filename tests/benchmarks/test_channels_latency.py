from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import channel_families, channels_latency
from benchmarks.channel_networks import Shrinker, difference_of, parameters_of
from mmp import MmpError, channel_groups


class Blocks(nn.Module):
    """Four inner widths of different sizes, and one too narrow to lose channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 32, 40, 64, 96)
        self.first = nn.ModuleList(nn.Conv2d(8, width, 3, padding=1) for width in widths)
        self.second = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in widths)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        images = self.stem(images)
        for first, second in zip(self.first, self.second, strict=True):
            images = images + second(first(images).relu())
        return self.head(images.mean((2, 3)))


@pytest.mark.parametrize(("gone", "multiple"), [(0.3, 16), (0.5, 16), (0.4, 8), (0.7, 8)])
def test_a_share_of_the_parameters_is_met_within_one_multiple(gone: float, multiple: int) -> None:
    torch.manual_seed(0)
    network, images = Blocks().eval(), torch.randn(2, 3, 6, 6)
    shrinker = Shrinker(network, channel_groups(network, images[:1]), images, multiple)
    masked, smaller, removal = shrinker.without(gone)
    total, left = parameters_of(network), parameters_of(smaller)
    of_one_channel = 8 * 9 + 1 + 8
    assert (1 - gone) * total - multiple * of_one_channel < left <= (1 - gone) * total
    assert difference_of(smaller, masked, torch.randn(3, 3, 6, 6)) < 1e-5
    assert not removal.kept
    for dense, layer in zip(network.first, smaller.first, strict=True):
        assert len(layer.weight) in {len(dense.weight), *range(multiple, len(dense.weight), multiple)}


def test_a_share_of_every_group_is_rounded_down_to_a_multiple() -> None:
    torch.manual_seed(0)
    network, images = Blocks().eval(), torch.randn(2, 3, 6, 6)
    _, smaller, _ = Shrinker(network, channel_groups(network, images[:1]), images, 16).with_share(0.4)
    assert [len(layer.weight) for layer in smaller.first] == [8, 16, 16, 32, 48]


def row(target: str, ratio: float, **other: Any) -> dict[str, Any]:
    found = {
        "model": "resnet18", "asked": 0.5, "tool": "mmp", "multiple": 16, "target": target, "ratio": ratio,
        "quartiles": [ratio - 0.01, ratio + 0.01], "parameters": 0.502, "multiply_adds": 0.6, "difference": 2e-7,
        "machine": "a processor",
    }  # fmt: skip
    return found | other


def test_the_report_compares_the_slower_engine_with_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_latency, "ROWS", tmp_path / "rows.jsonl")
    rows = [row("onnx", 0.9), row("onnx", 0.44), row("openvino", 0.56), row("onnx_int8", 0.19)]
    rows.append(row("onnx", 0.31, asked=0.7))
    channels_latency.ROWS.write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = tmp_path / "page.md"
    monkeypatch.setattr(channels_latency, "PAGE", page)
    monkeypatch.setattr(channel_families, "ROWS", tmp_path / "families.jsonl")
    names = ("latency", "latency in eight bits", "latency of any widths", "families")
    page.write_text("".join(f"<!-- channels: {name} -->\n\n<!-- end -->\n" for name in names))
    text = channels_latency.main(["report"])
    assert all(table in page.read_text() for table in channels_latency.tables().values())
    assert (
        "| resnet18 | mmp | 50.2 | 60.0 | 0.44 (0.43 to 0.45) | 0.56 (0.55 to 0.57) | 0.55: **miss** | 2e-07 |" in text
    )
    assert "| resnet18 | mmp | 50.2 | 60.0 | 0.31 (0.30 to 0.32) |  | 0.36: not measured | 2e-07 |" in text
    assert "| resnet18 | mmp | 50.2 | onnxruntime, int8 | 0.19 (0.18 to 0.20) | 0.22: pass |" in text
    assert "0.56 (resnet18, OpenVINO, 50 % of the parameters gone)" in text


@pytest.mark.parametrize("words", [["measure", "model=resnet18"], ["measure", "models=resnet19"], [], ["report", "x"]])
def test_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(MmpError):
        channels_latency.main(words)


def test_the_table_of_families_gives_the_reason_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_families, "ROWS", tmp_path / "rows.jsonl")
    ran = {"parameters": 0.5, "difference": 1e-7, "seconds": 1.0}
    rows = [
        {"model": "levit_128s", "tool": "mmp", **ran, "groups": 9, "kept": 1},
        {"model": "levit_128s", "tool": "Torch-Pruning", "problem": "IndexError: index 256"},
        {"model": "deit_tiny_patch16_224", "tool": "Torch-Pruning", **ran, "difference": 0.3},
    ]
    channel_families.ROWS.write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = channel_families.main(["report"])
    levit = "| LeViT | levit_128s | yes, 1 of 9 groups stay | 50 | yes | no (IndexError: index 256) |  |  |"
    assert levit in text
    assert "no, differs by 0.3" in text
    assert "Torch-Pruning: 1 of 2 run, 0 compute the same as with zeros." in text
