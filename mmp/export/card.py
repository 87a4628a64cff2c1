"""The card of an export: what its export.json holds, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmp.markdown import escaped, table_of
from mmp.pruning.sizes import MEGABYTE


def as_line(content: Mapping[str, Any]) -> str:
    """Return an export in one line."""
    accuracy, sizes, weights = content["accuracy"], content["bytes"], content["weights"]
    return (
        f"{content['run']} as {content['target']}: {sizes['file'] / MEGABYTE:.3f} MB "
        f"({sizes['file'] / sizes['dense_fp32']:.3f} of dense float32), sparsity {100 * weights['sparsity']:.2f} %, "
        f"test accuracy {100 * accuracy['file']:.2f} % ({accuracy['difference']:+.2f} points against PyTorch)"
    )


def as_card(content: Mapping[str, Any], usage: str) -> str:
    """Return the card as Markdown.

    Args:
        content: What export.json holds.
        usage: Lines of Python that load the file.
    """
    accuracy, weights, images = content["accuracy"], content["weights"], content["images"]
    size = images["image_size"]
    of_one = 100 / accuracy["samples"]
    lines = [
        f"# {escaped(content['run'])} as {content['target']}",
        "",
        f"{' with '.join(f'`{name}`' for name in content['files'])}, for {content['engine']}. Everything below was "
        "measured on this very file.",
        "",
        "## Accuracy",
        f"{100 * accuracy['file']:.2f} % on all {accuracy['samples']} test images; the same model in PyTorch "
        f"{100 * accuracy['pytorch']:.2f} %, so {accuracy['difference']:+.2f} points. One image is "
        f"{of_one:.2f} points. Test images chose nothing.",
        "",
        "## Size",
        _sizes(content["bytes"]),
        "",
        f"Weights of the dense model: {content['dense_weights']}.",
        "",
        "## Weights",
        f"Of {weights['prunable']} prunable weights, {weights['nonzero']} are not zero in the file, counted there: "
        f"sparsity {100 * weights['sparsity']:.2f} %. The masks prune {100 * weights['sparsity_of_masks']:.2f} %, and "
        f"every weight that they prune is zero in the file. {weights['rounded_to_zero']} kept weights are zero, too. "
        f"They are stored as {' and '.join(weights['types'])}.",
        "",
        "## Latency",
        *_latency(content),
        "",
        "## How to load it",
        "```python",
        *usage.splitlines(),
        "```",
        f"`images` are float32, (B, {images['channels']}, {size}, {size}) of any B: {images['recipe']}.",
        "",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in content["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _sizes(sizes: Mapping[str, int]) -> str:
    def row(what: str, bytes_: int) -> list[str]:
        return [what, f"{bytes_ / MEGABYTE:.3f}", f"{bytes_ / sizes['dense_fp32']:.3f}"]

    return table_of(
        ["", "MB", "of dense float32"],
        [
            row("dense weights, float32", sizes["dense_fp32"]),
            row("this file", sizes["file"]),
            row("this file, zstd", sizes["compressed"]),
            row("the dense model, exported alike", sizes["dense_file"]),
            row("the same, zstd", sizes["dense_compressed"]),
        ],
    )


def _within(quartiles: Sequence[float]) -> bool:
    low, high = quartiles
    return low <= 1 <= high


def _latency(content: Mapping[str, Any]) -> list[str]:
    if not content["latency"]:
        return ["Not measured (`seconds=0`)."]
    rows = [
        [
            str(one["batch"]),
            f"{1000 * one['seconds']:.2f}",
            f"{1000 * one['dense_seconds']:.2f}",
            f"{one['ratio']:.2f}{', no difference seen' if _within(one['quartiles']) else ''}",
            " to ".join(f"{value:.2f}" for value in one["quartiles"]),
            str(one["pairs"]),
        ]
        for one in content["latency"]
    ]
    return [
        table_of(["batch", "ms", "ms, dense", "ratio", "quartiles of the ratio", "pairs"], rows),
        "",
        f"Medians, timed in turns with the dense model exported alike in the same engine, {content['threads']} "
        f"thread(s), {content['processor']}. A ratio below 1 is faster; where 1 lies between the quartiles, no "
        "difference was seen.",
    ]
