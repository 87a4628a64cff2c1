"""The card of an export: its export.json as text."""

from __future__ import annotations

from mmp.export.latency import Latency
from mmp.export.result import ExportResult, FileSizes
from mmp.markdown import escaped, table_of
from mmp.pruning.sizes import MEGABYTE

MOST_CLASSES, FIRST = 20, 10  # the most names of classes that a card lists, and how many of more than that


def as_line(result: ExportResult) -> str:
    """Return an export in one line."""
    accuracy, sizes = result.accuracy, result.bytes
    return (
        f"{result.run} as {result.target}: {sizes.file / MEGABYTE:.3f} MB "
        f"({sizes.file / sizes.dense_fp32:.3f} of dense float32), sparsity {100 * result.weights.sparsity:.2f} %, "
        f"test accuracy {100 * accuracy.file:.2f} % ({accuracy.difference:+.2f} points against PyTorch)"
    )


def as_card(result: ExportResult, usage: str) -> str:
    """Return the card as Markdown.

    Args:
        result: The export.
        usage: Lines of Python that load the file and run it on ``images``.
    """
    accuracy, weights = result.accuracy, result.weights
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
        "## Weights",
        f"Of {weights.prunable} prunable weights, {weights.nonzero} are not zero in the file: sparsity "
        f"{100 * weights.sparsity:.2f} %. The masks prune {100 * weights.sparsity_of_masks:.2f} %, and every weight "
        f"that they prune is zero in the file. In addition, {weights.rounded_to_zero} kept weights are zero. The "
        f"weights are stored as {' and '.join(weights.types)}.",
        "",
        "## Latency",
        *_latency(result),
        "",
        "## How to load it",
        *_usage(result, usage),
        "",
        "## Classes",
        *class_lines(result),
        "",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in result.versions.items()) + ".",
        "",
    ]
    return "\n".join(lines)


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
