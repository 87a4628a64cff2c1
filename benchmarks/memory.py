"""Peak memory of scores and masks, each measurement in its own process.

``python -m benchmarks.memory`` scores Swin-Tiny by each signal of the paper and masks it, without and with the cache of
scores that a sweep shares. It also plans, scores and masks a ViT-Large for all strategies, layer by layer.
``python -m benchmarks.memory gpu`` measures Swin-Tiny in the memory that torch allocates on a GPU.

A peak is the largest resident memory (on a GPU: allocated memory) minus the memory of the process before it had a
model. The target is 1.1 times the memory that must be in use: the model, its gradients, one set of scores, and masks of
one byte per weight. The activations of a plain forward and backward pass over the same batches are subtracted first;
another process measures them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.scores import plain
from benchmarks.timing import Claim, table
from mmp.plan import make_plan
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_masks
from mmp.pruning.signals import PAPER_SIGNALS, score
from mmp.pruning.topk import keep_highest_each
from mmp.runs.calibration import Calibration
from mmp.runs.memory import peak_memory, reset_peak_memory, return_freed_memory

SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_large_patch16_224"
SIGNALS = {signal.name: signal for signal in PAPER_SIGNALS}
BATCHES, BATCH = 3, 4
MEBI, GIBI = 2**20, 2**30


def in_use(device: str) -> int:
    """Return the bytes that this process uses, on the GPU or in main memory."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return_freed_memory()
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise RuntimeError("resident memory can be read on Linux only")
    return int(found[1]) * 1024


def images(device: str) -> list[tuple[Tensor, Tensor]]:
    """Return calibration batches for Swin-Tiny."""
    shape = (BATCH, 3, 224, 224)
    return [(torch.randn(shape, device=device), torch.randint(100, (BATCH,), device=device)) for _ in range(BATCHES)]


def swin(route: str, name: str, device: str = "cpu") -> dict[str, float]:
    """Return the peak bytes of scoring and masking, and the bytes of the model and of its prunable weights.

    Args:
        route: ``plain``: only forward and backward; ``library``: scores in memory; ``cache``: scores in files.
        name: The signal.
        device: The device whose memory is measured, ``cpu`` or ``cuda``.
    """
    signal, loss, batches = SIGNALS[name], nn.CrossEntropyLoss(), images(device)
    # A small model first: some libraries are loaded at first use.
    small = timm.create_model("test_vit", num_classes=100, img_size=224).to(device)
    plain(small, prunable_parameters(small, prunable_layers(small)), [(batches[0][0][:1], batches[0][1][:1])])
    del small
    before = in_use(device)
    model = timm.create_model(SWIN, num_classes=100).to(device)
    layers = prunable_layers(model)
    parameters = prunable_parameters(model, layers)
    sparsities = make_plan(model, "swin").sparsities["p70"]
    reset_peak_memory()
    if route == "plain":
        plain(model, parameters, batches)
    elif route == "library":
        make_masks(score(signal, parameters, collect(model, parameters, batches, loss, signal.needs), True), sparsities)
    else:
        with tempfile.TemporaryDirectory() as folder:
            scores, _ = Calibration(model, layers, batches, loss, Path(folder), "key").scores(signal)
            make_masks(scores, sparsities)
    weights = sum(weight.nbytes for weight in parameters.values())
    state = sum(value.nbytes for value in model.state_dict().values())
    peak = peak_memory()["cuda" if device == "cuda" else "host"]
    return {"peak": peak - before, "model": state, "weights": weights}


def vit() -> dict[str, float]:
    """Return peak bytes, from the start of Python, and seconds of planning, scoring and masking a ViT-Large."""
    start = time.perf_counter()
    model = timm.create_model(VIT)
    built = time.perf_counter()
    strategies = make_plan(model).sparsities
    digests = {strategy: hashlib.sha256() for strategy in strategies}
    for name, weight in prunable_parameters(model, prunable_layers(model)).items():
        scores = score(SIGNALS["magnitude"], {name: weight}, {}, normalised=True)[name]
        counts = [pruned_count(sparsities[name], scores.numel()) for sparsities in strategies.values()]
        for sha, mask in zip(digests.values(), keep_highest_each(scores, counts), strict=True):
            sha.update(np.packbits(mask.numpy()))
    masks = len({sha.hexdigest() for sha in digests.values()})
    parameters = sum(weight.numel() for weight in model.parameters())
    now = time.perf_counter()
    return {
        "peak": peak_memory()["host"],
        "parameters": parameters,
        "masks": masks,
        "building": built - start,
        "rest": now - built,
    }


def in_process(*arguments: str) -> dict[str, float]:
    """Run this module with these arguments in a new process, and return what it measured."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def of_swin(route: str, signal: str, passes: Mapping[str, float], device: str = "cpu") -> Claim:
    """Return the claim on Swin-Tiny, given the measurement of the plain passes."""
    found = in_process(route, signal, device)
    model, weights = found["model"], found["weights"]
    activations = max(0.0, passes["peak"] - model - weights) if SIGNALS[signal].needs or route == "cache" else 0.0
    needed = model + 2 * weights + weights / 4
    note = f"{found['peak'] / MEBI:.0f} MiB; {needed / MEBI:.0f} must be, activations {activations / MEBI:.0f}"
    share = (found["peak"] - activations) / needed
    where = "GPU memory" if device == "cuda" else "memory"
    return Claim(f"Swin-Tiny, {signal}, {route}: peak over what must be in {where}", [share], most=1.1, note=note)


def of_swin_routes(device: str) -> Iterator[Claim]:
    """Yield the claims on Swin-Tiny: each signal, without and with the cache of scores."""
    passes = in_process("plain", "product", device)
    for route in ("library", "cache"):
        for signal in SIGNALS:
            yield of_swin(route, signal, passes, device)


def main() -> None:
    """Measure everything and print the table."""
    claims = list(of_swin_routes("cpu"))
    found = in_process("vit")
    note = f"{found['parameters'] / 1e6:.0f}M parameters, {found['masks']:.0f} different sets of masks; "
    note += f"{found['rest']:.0f} s, and {found['building']:.0f} s to build the model"
    what = "ViT-Large, planned, scored, masked for all strategies: peak in GiB"
    claims.append(Claim(what, [found["peak"] / GIBI], most=4, note=note))
    sys.stdout.write(table(claims) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1:] == ["gpu"]:
        sys.stdout.write(table(of_swin_routes("cuda")) + "\n")
    elif sys.argv[1:] == ["vit"]:
        sys.stdout.write(json.dumps(vit()))
    elif len(sys.argv) == 4 and sys.argv[1] in ("plain", "library", "cache") and sys.argv[2] in SIGNALS:
        sys.stdout.write(json.dumps(swin(*sys.argv[1:])))
    else:
        sys.exit(__doc__)
