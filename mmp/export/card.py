"""The card of an export: its export.json as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmp.export.latency import Latency
from mmp.export.result import ExportResult, FileSizes, WeightCounts
from mmp.markdown import escaped, table_of
from mmp.pruning.sizes import MEGABYTE

MOST_CLASSES, FIRST = 20, 10  # the most names of classes that a card lists, and how many of more than that


def as_line(result: ExportResult) -> str:
    """Return an export in one line."""
    accuracy, sizes, network = result.accuracy, result.bytes, result.network
    share = f"{sizes.file / sizes.dense_fp32:.3f} of dense float32"
    left = f"{network.parameters / network.dense_parameters:.3f} of the parameters, " if result.channels.removed else ""
    return (
        f"{result.run} as {result.target}: {sizes.file / MEGABYTE:.3f} MB "
        f"({share}), {left}sparsity {100 * result.weights.sparsity:.2f} %, "
        f"test accuracy {100 * accuracy.file:.2f} % ({accuracy.difference:+.2f} points against PyTorch)"
    )


def as_card(result: ExportResult, usage: str) -> str:
    """Return the card as Markdown.

    Args:
        result: The export.
        usage: Lines of Python that load the file and run it on ``images``.
    """
    accuracy = result.accuracy
    lines = [
        f"# {escaped(result.run)} as {result.target}",
        "",
        f"{' with '.join(f'`{name}`' for name in result.files)}, for {result.engine}. All numbers below were measured "
        "on this file.",
        "",
        "## Accuracy",
        f"{100 * accuracy.file:.2f} % on all {accuracy.samples} test images. The same model has "
        f"{100 * accuracy.pytorch:.2f} % in PyTorch, a difference of {accuracy.difference:+.2f} points. One image is "
        f"{100 / accuracy.samples:.2f} points. The test images were not used to choose anything.",
        "",
        "## Size",
        _sizes(result.bytes),
        "",
        f"Weights of the dense model: {result.dense_weights}.",
        "",
        "## Network",
        *_network(result),
        "",
        "## Weights",
        _weights(result.weights, bool(result.channels.removed)),
        "",
        "## Latency",
        *_latency(result),
        "",
        "## How to load it",
        *_usage(result, usage),
        "",
        *_run(result),
        "## Classes",
        *class_lines(result),
        "",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in result.versions.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _network(result: ExportResult) -> list[str]:
    network, channels = result.network, result.channels
    rows = [
        ("parameters", network.parameters, network.dense_parameters),
        ("multiply-adds", network.multiply_adds, network.dense_multiply_adds),
    ]
    cells = [[name, f"{ours:,}", f"{dense:,}", f"{ours / dense:.3f}"] for name, ours, dense in rows]
    lines = [table_of(["", "this file", "dense model", "ratio"], cells), ""]
    lines += ["Multiply-adds are those of linear layers and convolutions, for one image.", ""]
    if "code" in result.model:
        lines += [f"The dense network is `{result.model['code']}`{_place(result.model)}.", ""]
    if not channels.removed:
        lines += ["The file has all channels of the dense model."]
    else:
        removed = [[f"`{name}`", str(gone), str(of)] for name, (gone, of) in channels.removed.items()]
        lines += ["Sets of channels that nothing reads are removed, by the first layer that writes them:", ""]
        lines += [table_of(["first layer", "removed", "of"], removed)]
    if channels.kept:
        kept = [[f"`{name}`", escaped(reason)] for name, reason in channels.kept.items()]
        lines += ["", "Nothing reads some sets of these groups, either, but they are in the file:", ""]
        lines += [table_of(["first layer", "why"], kept)]
    return lines


def _place(model: Mapping[str, Any]) -> str:
    """Return where the class of a user is, and the hash of its code, where a run has one."""
    file = f" of the file `{model['file']}`" if model["file"] else ""
    return file + (f"; SHA-256 of the code and all that it imports: `{model['source']}`" if model["source"] else "")


def _run(result: ExportResult) -> list[str]:
    if not result.command:
        return []
    text = f"makes the same masks (digest `{result.masks_hash}`) in the folder in which the run was started:"
    return ["## The run", f"This command {text}", "", "```bash", result.command, "```", ""]


def _weights(weights: WeightCounts, removed: bool) -> str:
    counted = "; a removed weight counts as pruned" if removed else ""
    zero = "zero in the file or removed" if removed else "zero in the file"
    text = (
        f"Of {weights.prunable} prunable weights, {weights.nonzero} are not zero in the file: sparsity "
        f"{100 * weights.sparsity:.2f} %{counted}. The masks prune {100 * weights.sparsity_of_masks:.2f} %, and every "
        f"weight that they prune is {zero}. In addition, {weights.rounded_to_zero} kept weights are zero"
    )
    if removed:
        text += f", and {weights.removed} kept weights are removed, since nothing reads their channels"
    return f"{text}. The weights are stored as {' and '.join(weights.types)}."


def _usage(result: ExportResult, usage: str) -> list[str]:
    images = result.images
    shape = f"(B, {images['channels']}, {images['image_size']}, {images['image_size']})"
    text = f"`images` are float32 of shape {shape} for any batch size B, prepared as follows: {images['recipe']}."
    return ["```python", *usage.splitlines(), "```", text]


def class_lines(result: ExportResult) -> list[str]:
    """Return the lines of the card that say which logit belongs to which class."""
    names, outputs = result.classes, result.model["num_classes"]
    if names is None:
        return [f"The names of the {outputs} classes are unknown: the run does not state them."]
    shown = names if len(names) <= MOST_CLASSES else names[:FIRST]
    rows = [[str(output), escaped(name)] for output, name in enumerate(shown)]
    if len(shown) == len(names):
        return ["A logit for each class, in this order:", "", table_of(["logit", "class"], rows)]
    where = "`export.json`, as the list `classes`"
    text = f"A logit for each of {len(names)} classes. All names are in {where}, in the order of the logits; the first:"
    return [text, "", table_of(["logit", "class"], rows)]


def _sizes(sizes: FileSizes) -> str:
    def row(name: str, size: int) -> list[str]:
        return [name, f"{size / MEGABYTE:.3f}", f"{size / sizes.dense_fp32:.3f}"]

    return table_of(
        ["", "MB", "of dense float32"],
        [
            row("dense weights in float32", sizes.dense_fp32),
            row("this file", sizes.file),
            row("this file, zstd", sizes.compressed),
            row("the dense model in this format", sizes.dense_file),
            row("the dense model in this format, zstd", sizes.dense_compressed),
        ],
    )


def _latency(result: ExportResult) -> list[str]:
    if not result.latency:
        return ["Not measured (`seconds=0`)."]
    return [
        table_of(
            ["batch", "ms", "ms, dense", "ratio", "quartiles of the ratio", "pairs"], [*map(_timing, result.latency)]
        ),
        "",
        "Medians of measurements in alternation with the dense model in the same format and engine, on "
        f"{result.threads} thread(s) of {result.processor}. A ratio below 1 means that this file is faster. If 1 is "
        "between the quartiles, no difference was seen.",
    ]


def _timing(latency: Latency) -> list[str]:
    low, high = latency.quartiles
    return [
        str(latency.batch),
        f"{1000 * latency.seconds:.2f}",
        f"{1000 * latency.dense_seconds:.2f}",
        f"{latency.ratio:.2f}{', no difference seen' if low <= 1 <= high else ''}",
        f"{low:.2f} to {high:.2f}",
        str(latency.pairs),
    ]
