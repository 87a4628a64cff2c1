"""Whole channels in every module of timm: which share of the weights is in groups that can be removed exactly.

``python -m benchmarks.channel_survey`` examines the smallest model of every timm module, with random weights and in
double precision: it finds the groups, prunes half of the sets of each group, removes them, and compares the logits.
Each model runs in a process of its own, with limits of time and memory. A line of JSON per model goes to `RESULTS`;
models with a line are skipped, and so are all models with ``table``. Names of models examine these again. It prints
docs/timm_channels.md.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mmp import ChannelGroup, channel_groups, prunable_layers, prunable_parameters
from mmp.errors import first_line
from mmp.markdown import table_of
from mmp.pruning.channels.probe import first_tensor
from mmp.pruning.channels.shrink import remove

RESULTS = Path(__file__).parent / "results" / "channel_survey.jsonl"
MODELS = Path(__file__).parents[1] / "docs" / "timm_models.csv"
SIZES = (64, 128, 224, 256)  # pixels, the first at which a model runs with several positions in its last stage
SECONDS, BYTES = 900, 14 * 2**30  # the limits of one model, in processor time and in memory
ENOUGH = 0.6  # a model with a lower share has a reason

# Why models of a module have a lower share, where the results alone do not say it.
REASONS = {
    "coat": "shared position convolutions read the heads; the MLPs of parallel blocks run several times",
    "csatv2": "global response norms read the hidden units of most MLPs",
    "gcvit": "attention takes the channels of a head from the width of its input, so the heads of local blocks stay",
    "mambaout": "the gated layers are split at three widths that a tuple of the module states",
    "mlp_mixer": "a layer norm reads half of the hidden units, and multiplies the other half",
    "mobilenetv5": "RMS norms over channels read every expansion",
    "nfnet": "weights are standardised over their inputs, so a network computes something else without some of them",
    "pvt_v2": "attention reshapes its output to the width of its input, so all heads stay",
    "sequencer": "most weights are in LSTMs",
    "twins": "attention divides the width of its input by the number of heads, so all heads stay",
}

INTRODUCTION = """\
# Whole channels of every timm module

Which share of a network's prunable weights can be removed by [whole channels](channels.md) depends on its
architecture. The table has the smallest model of every timm module, with random weights and in double precision. Half
of the sets of every group were pruned and removed, and the logits of the smaller network were compared with those of
the pruned one.
"""
COLUMNS = """\
`share` is the share of the prunable weights that write or read channels of a group which was removed exactly. A weight
counts if its row or its column is in such a group, so 100 % does not mean that all of the network can go. `kept back`
counts the groups that failed the check: they keep their channels. `seconds` is the processor time to find the
groups, and `error` is the largest difference of the logits, as a share of the largest logit.

To regenerate:

```
python -m benchmarks.channel_survey > docs/timm_channels.md
```

It examines the modules that have no line in `benchmarks/results/channel_survey.jsonl`. With names of models it
examines these again.

<div class="wide" markdown>
"""


@dataclass
class Finding:
    """What can be removed from one model.

    Attributes:
        module: The timm module.
        model: The model.
        size: Height and width of the images, in pixels.
        share: Share of the prunable weights in groups that are removed exactly.
        groups: Number of groups.
        kept: Why groups are kept back, by name.
        seconds: Processor time to find the groups.
        error: Largest difference of the logits, as a share of the largest logit.
        outside: The layers with the most weights outside of these groups, and their shares of the prunable weights.
        problem: Why the model was not examined; empty if it was.
    """

    module: str
    model: str
    size: int = 0
    share: float = 0.0
    groups: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: float = 0.0
    outside: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def smallest_models() -> dict[str, str]:
    """Return the model with the fewest parameters of every timm module, by module; timm's test models do not count."""
    with MODELS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["model"].startswith("test_")]
    rows.sort(key=lambda row: (int(row["parameters"]), row["model"]), reverse=True)
    found: dict[str, str] = {}
    for row in rows:
        found.pop(row["module"], None)
        found[row["module"]] = row["model"]
    return found


def examine(module: str, model: str) -> Finding:
    """Return what can be removed from one model."""
    torch.manual_seed(0)
    network, images = built(model)
    finding = Finding(module, model, images.shape[-1])
    start = time.process_time()
    groups = channel_groups(network.float(), images[:1])
    finding.seconds, finding.groups = time.process_time() - start, len(groups)
    network, images = network.double(), images.double()
    chosen = pruned_half(network, groups)
    smaller, removal = remove(network, chosen, images)
    finding.kept = removal.kept
    with torch.no_grad():
        logits, found = (first_tensor(each(images)) for each in (network, smaller))
    finding.error = float((logits - found).abs().max() / logits.abs().max())
    inside = covered([group for group in groups if group.name in removal.removed], network)
    total = sum(mask.numel() for mask in inside.values())
    finding.share = sum(int(mask.sum()) for mask in inside.values()) / total
    outside = sorted(((int((~mask).sum()) / total, name) for name, mask in inside.items()), reverse=True)
    finding.outside = {name: round(share, 4) for share, name in outside[:5] if share}
    return finding


def built(model: str) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights in eval mode, and two images of the smallest of `SIZES` that it accepts."""
    problem: Exception | None = None
    for size in SIZES:
        for options in ({"img_size": size}, {}):
            try:
                network = timm.create_model(model, num_classes=10, **options).eval()
                randomise(network)
                images = torch.randn(2, 3, size, size)
                with torch.no_grad():
                    network(images)
                    features = first_tensor(network.forward_features(images))
                if features[0].numel() > network.num_features or size == SIZES[-1]:
                    return network, images
            except Exception as error:  # a size that a model does not accept can raise any exception
                problem = error
    assert problem is not None
    raise problem


def randomise(network: nn.Module) -> None:
    """Give norms and scales random values, since a scale of zero would hide the channels behind it."""
    for parameter in network.parameters():
        if parameter.dim() <= 1:
            parameter.data.copy_(1 + 0.1 * torch.randn_like(parameter))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)


def pruned_half(network: nn.Module, groups: Iterable[ChannelGroup]) -> dict[ChannelGroup, Tensor]:
    """Set the weights that read half of the sets of each group to zero, and return the numbers of the sets."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    chosen = {}
    for group in groups:
        chosen[group] = torch.randperm(len(group))[: len(group) // 2].sort().values
        for part in group.readers:
            tensors[part.name].data[:, group.channels[part][chosen[group]].flatten()] = 0
    return chosen


def covered(groups: Iterable[ChannelGroup], network: nn.Module) -> dict[str, Tensor]:
    """Return which prunable weights write or read channels of groups, as masks by name."""
    weights = prunable_parameters(network, prunable_layers(network))
    inside = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    for group in groups:
        for part, channels in group.channels.items():
            if part.name in inside and (part.side == "out" or part in group.readers):
                inside[part.name].index_fill_(0 if part.side == "out" else 1, channels.flatten(), True)
    return inside


def in_own_process(module: str, model: str) -> Finding:
    """Return what can be removed from one model, or why that is unknown, from a process with limits."""
    forked = multiprocessing.get_context("fork")  # a fork does not import everything again
    ours, theirs = forked.Pipe(duplex=False)
    process = forked.Process(target=_report, args=(module, model, theirs))
    process.start()
    theirs.close()
    try:
        finding: Finding = ours.recv()
    except EOFError:
        finding = Finding(module, model, problem=f"not done after {SECONDS} s, or out of memory")
    process.kill()
    process.join()
    return finding


def _report(module: str, model: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        pipe.send(examine(module, model))
    except Exception as error:  # any exception is a finding, so that the survey goes on with the other models
        pipe.send(Finding(module, model, problem=f"{type(error).__name__}: {first_line(error)}"))


def stored() -> dict[str, Finding]:
    """Return the latest finding of each model, by module."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {finding.module: finding for finding in (Finding(**json.loads(line)) for line in lines)}


def main(arguments: list[str]) -> str:
    """Examine what is missing, and return the page."""
    models = smallest_models()
    if arguments != ["table"]:
        done = stored()
        for module, model in reversed(models.items()):
            if model in arguments if arguments else module not in done:
                finding = in_own_process(module, model)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(finding)) + "\n")
                sys.stderr.write(f"{module} {model} {finding.share:.2f} {finding.seconds:.0f} s {finding.problem}\n")
    return page([finding for module, finding in sorted(stored().items())], len(models))


def page(findings: Sequence[Finding], modules: int) -> str:
    """Return docs/timm_channels.md.

    Args:
        findings: What was found, one of a module.
        modules: Number of timm's modules.
    """
    examined = [f for f in findings if not f.problem]
    enough = sum(f.share >= ENOUGH for f in examined)
    summary = [
        f"- {len(examined)} of timm's {modules} modules are examined so far.",
        f"- {enough} of these models have at least {100 * ENOUGH:.0f} % of their prunable weights in groups that are "
        "removed exactly.",
    ]
    if examined:
        summary += [
            f"- The median share is {100 * statistics.median(f.share for f in examined):.0f} %.",
            f"- The largest difference of the logits is {max(f.error for f in examined):.0e} of the largest logit.",
            f"- To find the groups takes {statistics.median(f.seconds for f in examined):.0f} seconds of one thread at "
            f"the median, and {max(f.seconds for f in examined):.0f} at most.",
        ]
    rows = [
        [
            f.module, f.model, str(f.size), f"{100 * f.share:.0f}", str(f.groups), str(len(f.kept)), f"{f.seconds:.0f}",
            f"{f.error:.0e}", _why(f) if f.share < ENOUGH else "",
        ]
        if not f.problem else [f.module, f.model, *[""] * 6, f.problem]
        for f in findings
    ]  # fmt: skip
    headings = ["module", "model", "pixels", "share %", "groups", "kept back", "seconds", "error", "why less"]
    return f"{INTRODUCTION}\n" + "\n".join(summary) + f"\n\n{COLUMNS}\n{table_of(headings, rows)}\n\n</div>\n"


def _why(finding: Finding) -> str:
    """Return why a model has a low share: what keeps its groups back, or else the largest layers outside of groups."""
    if finding.module in REASONS:
        return REASONS[finding.module]
    if finding.kept:
        name, reason = next(iter(finding.kept.items()))
        return f"{len(finding.kept)} groups are kept back; `{name}`: {reason}"
    return "outside of all groups: " + ", ".join(f"`{n}` ({100 * share:.0f} %)" for n, share in finding.outside.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(sys.argv[1:]), end="")  # noqa: T201
