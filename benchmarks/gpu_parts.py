"""The parts of ``python -m benchmarks.gpu``. Each runs in its own process and yields figures as soon as it has them.

Without a GPU the same code runs on the CPU; ``dry`` makes every part small.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytorch_lightning as pl
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

import benchmarks.data
import benchmarks.enforcement
import benchmarks.memory
import benchmarks.reconstruction
import benchmarks.scores
from benchmarks import gpu_studies
from benchmarks.gpu_channels import channel_steps, channels
from benchmarks.gpu_figures import DEVICE, ROOT, Figure, Part, Setting, exactly
from benchmarks.gpu_joint import joint, joint_steps
from benchmarks.timing import Claim, in_turns, ratios
from callbacks.pruning import MaskPruning
from mmp.config.choices import choices_of, choose
from mmp.plan import make_plan
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import Masks, check_zeros, load_masks, make_grid
from mmp.pruning.signals import PAPER_SIGNALS, score
from mmp.tensors import load_tensors

SWIN = "swin_tiny_patch4_window7_224"


# --- tests ---


def tests(setting: Setting) -> Iterator[Figure]:
    """Run the tests that need a GPU, then the quick tests that use a GPU if there is one."""
    yield from _pytest("tests that need a GPU", setting, "tests/pruning/test_patterns.py", "-k", "gpu")
    if not setting.dry:
        places = ("tests/pruning", "tests/callbacks", "tests/training", "tests/models/test_own_networks.py")
        places += ("tests/data/test_gpu_batches.py",)
        yield from _pytest("quick tests of pruning, callbacks and training", setting, *places, "-n", "12")


def _pytest(name: str, setting: Setting, *arguments: str) -> Iterator[Figure]:
    report = setting.work / f"{name.replace(' ', '-')}.xml"
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *arguments], cwd=ROOT, check=False)  # noqa: S603
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 (pytest's own report)

    def having(*tags: str) -> list[str]:
        return [case.get("name", "") for case in cases if any(case.find(tag) is not None for tag in tags)]

    failed, skipped = having("failure", "error"), having("skipped")
    yield exactly(f"{name}: failed", len(failed), 0, "tests", ", ".join(failed)[:500])
    yield Figure(f"{name}: passed", len(cases) - len(failed) - len(skipped), "tests", note=f"{len(skipped)} skipped")


# --- masks on CPU and GPU ---


def masks(setting: Setting) -> Iterator[Figure]:
    """Compare scores and masks that are computed on the CPU and on the GPU, for ten strategies and three signals."""
    cases = [("resnet18", 32, "resnet", 43, 8 if setting.dry else 64)]
    if not setting.dry:
        cases.append((SWIN, 224, "swin", 100, 16))
    for name, size, table, classes, images in cases:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=classes)
        strategies = make_plan(model, table).sparsities
        batches = [(torch.randn(images, 3, size, size), torch.randint(classes, (images,))) for _ in range(2)]
        on_cpu = _scores(model, batches, "cpu")
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            on_device = _scores(model, batches, DEVICE)
            for signal, found in on_device.items():
                case = f"{name}, {signal}, TF32 {'on' if tf32 else 'off'}"
                yield from _compare(case, on_cpu[signal], found, strategies)


def _scores(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> dict[str, dict[str, Tensor]]:
    model = copy.deepcopy(model).to(device)
    parameters = prunable_parameters(model, prunable_layers(model))
    placed = [(images.to(device), labels.to(device)) for images, labels in batches]
    statistics_of = collect(model, parameters, placed, F.cross_entropy, {"absolute_gradient"})
    return {signal.name: score(signal, parameters, statistics_of, normalised=True) for signal in PAPER_SIGNALS}


def _compare(
    case: str, cpu: Mapping[str, Tensor], gpu: Mapping[str, Tensor], strategies: Mapping[str, Mapping[str, float]]
) -> Iterator[Figure]:
    """Yield the differences of two sets of scores and of their masks.

    Masks are compared twice: made on both devices from the same scores, and made from each device's own scores.
    """
    moved = {name: value.cpu() for name, value in gpu.items()}
    difference = max(float((moved[name] - cpu[name]).abs().max() / cpu[name].abs().max()) for name in cpu)
    yield Figure(f"{case}: scores, largest difference over a layer's largest score", difference, "ratio")
    own, same, there = (make_grid(scores, strategies) for scores in (cpu, moved, gpu))
    yield exactly(f"{case}: masks of the same scores, equal bits", _equal_bits(same, there), 1, "share")
    equal = _equal_bits(own, same)
    what = f"{case}: masks of each device's own scores, equal bits"
    yield exactly(what, equal, 1, "share") if case.split(", ")[1] == "magnitude" else Figure(what, equal, "share")


def _equal_bits(left: Mapping[str, Masks], right: Mapping[str, Masks]) -> float:
    """Return the share of mask bits that are equal, over all strategies and layers."""
    pairs = [(left[s][name], right[s][name].cpu()) for s in left for name in left[s]]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


# --- mixed precision ---


class CountPrunedWeights(pl.Callback):
    """Counts the pruned weights that are not zero after every training step, and writes the sum to a file.

    Args:
        file: The JSON file.
    """

    def __init__(self, file: str) -> None:
        self._file, self._steps, self._alive = Path(file), 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Add the pruned weights that are not zero to the sum."""
        held = next(callback for callback in trainer.callbacks if isinstance(callback, MaskPruning)).masks
        weights = dict(pl_module.model.named_parameters())  # type: ignore[operator]
        for name, mask in (held or {}).items():
            self._alive += int((weights[name].detach() != 0)[~mask.to(weights[name].device)].sum())
        self._steps += held is not None

    def on_train_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Write the numbers of steps and of weights, and the precision."""
        self._file.write_text(json.dumps({"steps": self._steps, "alive": self._alive, "precision": trainer.precision}))


def mixed_precision(setting: Setting) -> Iterator[Figure]:
    """Prune and fine-tune in bf16 and fp16; count pruned weights that are not zero, after each step and on disk."""
    epochs = (1, 1) if setting.dry else (8, 3)
    for precision, clipping in (("32-true", None), ("bf16-mixed", None), ("16-mixed", None), ("16-mixed", 1.0)):
        case = precision if clipping is None else f"{precision}, gradients clipped"
        folder = setting.work / "mixed_precision" / case.replace(", ", "-").replace(" ", "-")
        counted = folder / "counted.json"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [f"dense.epochs={epochs[0]}", "dense.warmup_epochs=0", f"finetune.epochs={epochs[1]}"]
        arguments += [f"trainer.precision={precision}", f"paths.results={folder}", "strategy=aggressive"]
        arguments += [f"+callbacks.count._target_={__name__}.CountPrunedWeights", f"+callbacks.count.file={counted}"]
        _prune(*arguments, *([] if clipping is None else [f"trainer.gradient_clip_val={clipping}"]))
        (result,) = _results(folder)
        found = json.loads(counted.read_text())
        note = f"{found['steps']} steps with precision {found['precision']}"
        yield exactly(f"{case}: pruned weights that are not zero after a step", found["alive"], 0, "weights", note)
        run = result["folder"]
        check_zeros(load_tensors(run / "model.safetensors"), load_masks(run / "masks.safetensors"))
        yield exactly(f"{case}: pruned weights that are not zero in the saved file", 0, 0, "weights")
        yield _drop(case, result)


def _prune(*arguments: str) -> None:
    """Run ``python prune.py ARGUMENT...``; its output goes to the part's log.

    Raises:
        CalledProcessError: if the command fails.
    """
    quiet = "trainer.enable_progress_bar=false"
    subprocess.run([sys.executable, "prune.py", *arguments, quiet], cwd=ROOT, check=True)  # noqa: S603


def _results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of all completed runs in a folder, in the order in which the runs ended."""
    paths = sorted(folder.rglob("result.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) | {"folder": path.parent} for path in paths]


def _drop(name: str, result: Mapping[str, Any]) -> Figure:
    accuracy = {model: 100 * values["test"] for model, values in result["accuracy"].items()}
    validation = 100 * result["accuracy"]["finetuned"]["validation"]
    note = (
        f"sparsity {100 * result['sparsity']:.1f} %; dense {accuracy['dense']:.2f} %, pruned {accuracy['pruned']:.2f}, "
        f"fine-tuned {accuracy['finetuned']:.2f} (on validation {validation:.2f}) after {result['epochs']} epochs; "
        f"{result['seconds']['total']:.0f} s"
    )
    return Figure(f"{name}: drop in test accuracy", result["drop"], "points", note=note)


# --- training steps of smaller networks, and steps of a joint tuning ---


def steps(setting: Setting) -> Iterator[Figure]:
    """Time training steps without half of the channels, and steps of a joint tuning."""
    yield from joint_steps(setting)
    yield from channel_steps(setting)


# --- the targets of README.md ---


def enforcement(setting: Setting) -> Iterator[Figure]:
    """Time a training step under masks against a dense step."""
    for case in benchmarks.enforcement.CASES[-1:] if setting.dry else benchmarks.enforcement.CASES:
        yield from map(Figure.of, benchmarks.enforcement.measure(*case))


def scores(setting: Setting) -> Iterator[Figure]:
    """Time scoring against plain forward and backward passes."""
    torch.manual_seed(0)
    for name, size in list(benchmarks.scores.MODELS.items())[: 1 if setting.dry else None]:
        yield from map(Figure.of, benchmarks.scores.measure(name, size))


def memory(setting: Setting) -> Iterator[Figure]:
    """Measure the peak memory of scoring and masking Swin-Tiny."""
    if setting.dry:
        passes = benchmarks.memory.in_process("plain", "product", DEVICE)
        yield Figure.of(benchmarks.memory.of_swin("library", "product", passes, DEVICE))
    else:
        yield from map(Figure.of, benchmarks.memory.of_swin_routes(DEVICE))


def reconstruction(setting: Setting) -> Iterator[Figure]:
    """Time the reconstruction of Swin-Tiny's layers."""
    for images in (2,) if setting.dry else (64, 512):
        found = benchmarks.reconstruction.cost(SWIN, "swin", 100, images)
        note = f"peak {found.peak / 2**30:.2f} GiB; {found.solved} layers solved, {found.left} left as masked"
        what, holds = f"Swin-Tiny, {images} images: a reconstruction", found.seconds <= 60
        yield Figure(what, found.seconds, "s", target="at most 60", holds=holds, note=note)


def input_pipeline(setting: Setting) -> Iterator[Figure]:
    """Compare an augmented fine-tuning epoch with as many steps of the bare model on one batch."""
    if setting.dry:
        benchmarks.data.STEPS = 2
    pixels = torch.randint(0, 256, (benchmarks.data.IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % benchmarks.data.CLASSES
    recipe = OmegaConf.to_container(choose("data", "cifar10").augment)
    for name in benchmarks.data.MODELS[: 1 if setting.dry else None]:
        yield Figure.of(benchmarks.data.epoch(name, pixels, labels, recipe, repeats=1 if setting.dry else 4))


# --- several models trained in one step ---


def stacked(setting: Setting) -> Iterator[Figure]:
    """Time a training step of ten masked copies of a model: one after another, and all at once with ``torch.vmap``."""
    copies, repeats = (2, 1) if setting.dry else (10, 5)
    cases = (("cnn", 1, 28, 128), ("resnet18", 3, 32, 128))
    for name, in_chans, size, batch in cases[: 1 if setting.dry else None]:
        images = torch.randn(batch, in_chans, size, size, device=DEVICE)
        labels = torch.randint(10, (batch,), device=DEVICE)
        models = [benchmarks.enforcement.model_of(name, in_chans).to(DEVICE).train() for _ in range(copies)]
        routes = {"in turn": _steps_in_turn(models, images, labels), "stacked": _steps_stacked(models, images, labels)}
        found = in_turns(routes, repeats)
        milliseconds = {route: 1000 * statistics.median(seconds) / _STEPS for route, seconds in found.items()}
        note = f"{milliseconds['in turn']:.1f} ms over {milliseconds['stacked']:.1f} ms for a step of all"
        gains = ratios(found["in turn"], found["stacked"])
        yield Figure.of(Claim(f"{name}, {copies} models: steps in turn over stacked steps", gains, note=note))


_STEPS = 4


def _steps_in_turn(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], None]:
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        model.optimizer = torch.optim.Adam(model.parameters(), 1e-4)  # type: ignore[assignment]
        benchmarks.enforcement.ours(model, model.optimizer)  # type: ignore[arg-type]

    def steps() -> None:
        for _ in range(_STEPS):
            for model in copies:
                model.optimizer.zero_grad()  # type: ignore[union-attr]
                F.cross_entropy(model(images), labels).backward()
                model.optimizer.step()  # type: ignore[union-attr]

    return steps


def _steps_stacked(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], None]:
    parameters, buffers = stack_module_state(list(models))
    skeleton = copy.deepcopy(models[0]).to("meta")
    parameters = {name: nn.Parameter(value.detach()) for name, value in parameters.items()}
    prunable = {layer.name for layer in prunable_layers(models[0])}
    kept = {name: parameters[name].detach().abs() > 0.01 for name in prunable}  # any masks take the same time
    optimizer = torch.optim.Adam(parameters.values(), 1e-4)

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (weights, state), (images,)), labels)

    gradients_of = vmap(grad(loss), randomness="different")

    def steps() -> None:
        for _ in range(_STEPS):
            gradients = gradients_of({name: value.detach() for name, value in parameters.items()}, buffers)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_([parameters[name] for name in prunable], [kept[name] for name in prunable])

    return steps


# --- several jobs on one device ---


def jobs(setting: Setting) -> Iterator[Figure]:
    """Run a sweep on digits with one worker and with four workers on one device; the results must be the same."""
    strategies, epochs = ("p50,p70", (1, 1)) if setting.dry else ("p30,p50,p70,p90", (20, 6))
    common = [f"dense.epochs={epochs[0]}", "dense.warmup_epochs=0", f"finetune.epochs={epochs[1]}"]
    common += [f"paths.cache={setting.work}/jobs/cache"]
    _prune(*common, "finetune.epochs=0", f"paths.results={setting.work}/jobs/first")  # trains the dense model
    seconds, found = {}, {}
    for workers in (1, 4):
        folder = setting.work / "jobs" / str(workers)
        start = time.perf_counter()
        sweep = [f"strategy={strategies}", "signal=magnitude,product", f"paths.results={folder}"]
        _prune("-m", *common, *sweep, *_launcher(workers))
        seconds[workers] = time.perf_counter() - start
        found[workers] = {r["run_name"]: (r["sparsity"], r["accuracy"]["finetuned"]) for r in _results(folder)}
    wanted = 2 * len(strategies.split(","))
    for workers, results in found.items():
        yield exactly(f"workers: {workers}; completed jobs", len(results), wanted, "jobs", f"{seconds[workers]:.1f} s")
    same = sum(found[1].get(name) == result for name, result in found[4].items())
    yield exactly("jobs with the same sparsity and accuracy with one worker and with four", same, wanted, "jobs")
    yield Figure("four workers on one device, times as fast as one", seconds[1] / seconds[4], "ratio")


def _launcher(workers: int, slots: int | None = None) -> list[str]:
    """Return the overrides that start this many workers on one device; a GPU may have more slots than workers."""
    shared = [f"hydra.launcher.jobs_per_device={slots or workers}"] if DEVICE == "cuda" else []
    return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}", *shared]


# --- the paper's experiments ---

AT_ONCE = 10  # jobs that share the GPU
SIGNALS = ("magnitude", "product", "gradient")
CRITERIA = ("mag", "snip", "grasp")


def dense(setting: Setting, experiment: str, overrides: Sequence[str]) -> Iterator[Figure]:
    """Train an experiment's dense model and compute its scores, in one run without fine-tuning."""
    folder = setting.work / experiment
    start = time.perf_counter()
    _prune(*_experiment(setting, experiment, overrides), "finetune.epochs=0", "strategy=balanced", "data.workers=4")
    result = next(r for r in _results(folder / "runs") if r["epochs"] == 0)
    note = f"{', '.join(overrides)}; {time.perf_counter() - start:.0f} s"
    yield Figure(f"{experiment}: dense test accuracy", 100 * result["accuracy"]["dense"]["test"], "%", note=note)


def grid(setting: Setting, experiment: str, overrides: Sequence[str]) -> Iterator[Figure]:
    """Run an experiment's ten strategies for three signals, and three criteria, several jobs at once."""
    shared = ["-m", *_experiment(setting, experiment, overrides), "data.workers=1", "trainer.enable_progress_bar=false"]
    strategies, criteria = _jobs_of(setting)
    slots = AT_ONCE + len(criteria)
    several = [f"signal={','.join(SIGNALS)}", f"strategy={','.join(strategies)}", "sweep=grid"]
    single = [f"criterion={','.join(criteria)}", "signal=magnitude", "strategy=balanced", "sweep=single"]
    sweeps = [[*several, *_launcher(AT_ONCE, slots)], [*single, *_launcher(len(criteria), slots)]]
    command = [sys.executable, "prune.py", *shared]
    running = [subprocess.Popen([*command, *sweep], cwd=ROOT) for sweep in sweeps]  # noqa: S603
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"sweeps ended with exit codes {codes}")
    yield from ()  # gather_grid reads the results, even if this part is stopped


def _jobs_of(setting: Setting) -> tuple[Sequence[str], Sequence[str]]:
    """Return the strategies and the criteria of a grid."""
    return (("p70",), ("mag",)) if setting.dry else (choices_of("strategy"), CRITERIA)


def gather_grid(setting: Setting, experiment: str, overrides: Sequence[str]) -> Iterator[Figure]:
    """Yield the drop in test accuracy of every completed job."""
    found = _results(setting.work / experiment / "sweeps")
    strategies, criteria = _jobs_of(setting)
    wanted = len(SIGNALS) * len(strategies) + len(criteria)
    yield Figure(f"{experiment}: completed jobs", len(found), "jobs", note=f"of {wanted}; {', '.join(overrides)}")
    for result in found:
        single = result["criterion"]
        yield _drop(f"{experiment}, {single or result['signal'] + ', ' + result['strategy']}", result)


def _experiment(setting: Setting, experiment: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that all commands of one experiment share."""
    paths = [f"data.root={setting.data}", f"paths.results={setting.work / experiment}"]
    small = ["dense.epochs=1", "dense.warmup_epochs=0", "finetune.epochs=1", "trainer.limit_train_batches=2"]
    return [f"experiment=paper/{experiment}", *paths, *overrides, *(small if setting.dry else [])]


_VGG = {
    "experiment": "vgg11_cifar10",
    "overrides": ("trainer.precision=bf16-mixed", "dense.epochs=30"),
}
_RESNET = {
    "experiment": "resnet18_gtsrb",
    "overrides": ("trainer.precision=bf16-mixed", "model.image_size=32", "data.in_memory=true"),
}

PARTS: dict[str, Part] = {
    "tests": Part(tests, 200),
    "masks": Part(masks, 90),
    "channels": Part(channels, 120),
    "joint": Part(joint, 120),
    "mixed_precision": Part(mixed_precision, 120),
    "memory": Part(memory, 120),
    "dense_resnet18_gtsrb": Part(dense, 180, needs="gtsrb", options=_RESNET),
    "dense_vgg11_cifar10": Part(dense, 240, needs="cifar-10-batches-py", options=_VGG),
    "steps": Part(steps, 90),
    "enforcement": Part(enforcement, 60),
    "scores": Part(scores, 60),
    "reconstruction": Part(reconstruction, 120),
    "input": Part(input_pipeline, 75),
    "jobs": Part(jobs, 90),
    "stacked": Part(stacked, 45),
    "resnet18_gtsrb": Part(grid, 600, gather_grid, "gtsrb", _RESNET),
    "vgg11_cifar10": Part(grid, 600, gather_grid, "cifar-10-batches-py", _VGG),
    "oneshot": Part(gpu_studies.measure, 200, gpu_studies.gather, gpu_studies.NETWORKS, {"campaign": "oneshot"}),
    "study": Part(gpu_studies.measure, 420, gpu_studies.gather, gpu_studies.NETWORKS, {"campaign": "study"}),
}
# Parts in one tuple may run at the same time, because their results do not depend on time. All others run alone.
TOGETHER = (
    ("tests", "masks", "channels", "joint", "mixed_precision", "memory", "dense_resnet18_gtsrb", "dense_vgg11_cifar10"),
)
