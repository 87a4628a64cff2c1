"""Images per second: whole batches against per-image transforms, and a fine-tuning epoch against the bare model.

``python -m benchmarks.data`` first loads epochs of random images with the size of CIFAR-10's, in one process: not
augmented, with the augmentation of ``data=cifar10``, and with timm's defaults. Two loaders transform each image alone,
with PIL and timm: a plain DataLoader, and our ``data.augment_batches=false``, which seeds each image. Both load a
fortieth of the images.
Then it fine-tunes with Lightning and augmentation. After every epoch it takes as many steps of the bare model, loss and
optimizer, on one batch that is already on the device. With a GPU, training is in bfloat16 and channels-last, and four
worker processes load the images; without a GPU, everything runs in one process.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Claim, in_turns, ratios, shown, table
from mmp.config.choices import choose
from mmp.config.schema import DataConfig, FinetuneConfig, ModelConfig
from mmp.data.images import TransformedImages, in_memory, transform_of
from mmp.data.loader import EpochLoader, EpochShuffle, Split
from mmp.models.networks import build_model
from mmp.training.classifier import Classifier

GPU = torch.cuda.is_available()
IMAGES, STEPS = 50_000, 390 if GPU else 10
BATCH, CLASSES, REPEATS = 128, 10, 7
MODELS = ("cnn", "resnet18")


def settings(augment: Any) -> DataConfig:
    """Return the data settings of random images with the size of CIFAR-10's."""
    state = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    return DataConfig(name="random", reader="", classes=CLASSES, image_size=32, augment=augment, **state)


def pipeline(what: str, pixels: Tensor, labels: Tensor, augment: Any) -> list[Claim]:
    """Return the ratios of images per second: our batches over each loader that transforms one image at a time."""
    config, seed = settings(augment), None if augment is None else 0
    order, few = EpochShuffle(len(labels), seed=0), len(labels) // 40
    ours = EpochLoader(Split(in_memory(pixels, labels, config)[0], range(len(labels)), seed), BATCH, order)
    single = TransformedImages(pixels[:few], labels[:few], transform_of(config, training=augment is not None))
    slow: dict[str, Dataset[Any]] = {"torchvision's DataLoader": single}
    if augment is not None:
        slow["data.augment_batches=false"] = Split(single, range(few), seed)

    def epoch() -> None:
        order.set_epoch(order.epoch + 1)
        for _batch in ours:
            pass

    def one_by_one(images: Dataset[Any]) -> Callable[[], object]:
        return lambda: list(DataLoader(images, BATCH, shuffle=True))

    found = in_turns({"ours": epoch, **{name: one_by_one(images) for name, images in slow.items()}}, REPEATS)
    rates = {name: (few if name in slow else len(labels)) / statistics.median(found[name]) for name in found}
    return [
        Claim(
            f"{what}: ours over {name}",
            [ratio * len(labels) / few for ratio in ratios(found[name], found["ours"])],
            note=f"{shown(rates['ours'])} images/s over {shown(rates[name])}",
        )
        for name in slow
    ]


class BareSteps(pl.Callback):
    """Times each epoch, then times as many steps of a second model on one batch that stays on the device.

    Args:
        model: The second model.
        recipe: The recipe with its optimizer.
    """

    def __init__(self, model: nn.Module, recipe: FinetuneConfig) -> None:
        device = "cuda" if GPU else "cpu"
        self._model = model.to(device).train()
        self._optimizer = create_optimizer_v2(model, opt=recipe.optimizer, lr=1e-4, weight_decay=recipe.weight_decay)
        images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        self._batch = images, torch.randint(CLASSES, (BATCH,), device=device)
        self._start = 0.0
        self.seconds: dict[str, list[float]] = {"epoch": [], "bare": []}

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock."""
        self._start = now()

    def on_train_epoch_end(self, *_: object) -> None:
        """Record the seconds of the epoch, then take and time the steps of the second model."""
        middle = now()
        images, labels = self._batch
        for _step in range(STEPS):
            self._optimizer.zero_grad()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=GPU):
                loss = nn.functional.cross_entropy(self._model(images), labels)
            loss.backward()
            self._optimizer.step()
        self.seconds["epoch"].append(middle - self._start)
        self.seconds["bare"].append(now() - middle)


def now() -> float:
    """Return the time, after all work on the GPU has finished."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def epoch(name: str, pixels: Tensor, labels: Tensor, augment: Any, repeats: int = REPEATS) -> Claim:
    """Return the images per second of a fine-tuning epoch over those of the bare model."""
    recipe = FinetuneConfig(epochs=repeats + 1, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
    config = ModelConfig(**{**OmegaConf.to_container(choose("model", name), resolve=True), "num_classes": CLASSES})
    models = [build_model(config).to(memory_format=torch.channels_last) for _ in range(2)]
    images = Split(in_memory(pixels, labels, settings(augment))[0], range(BATCH * STEPS), seed=0)
    workers = {"num_workers": 4, "persistent_workers": True, "pin_memory": True} if GPU else {}
    loader = EpochLoader(images, BATCH, EpochShuffle(len(images), seed=0), **workers)
    bare = BareSteps(models[0], recipe)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=recipe.epochs, devices=1, precision="bf16-mixed" if GPU else "32-true", callbacks=[bare],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(models[1], recipe, CLASSES), train_dataloaders=loader)
    seconds = {route: values[1:] for route, values in bare.seconds.items()}
    rates = [BATCH * STEPS / statistics.median(seconds[route]) for route in ("epoch", "bare")]
    note = f"{shown(rates[0])} images/s over {shown(rates[1])}"
    what = f"{name}, augmented fine-tuning epoch over the bare model on one batch"
    return Claim(what, ratios(seconds["bare"], seconds["epoch"]), least=0.8, note=note)


def measure() -> list[Claim]:
    """Return all claims."""
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    recipe = OmegaConf.to_container(choose("data", "cifar10").augment)
    routes = {"not augmented": None, "augmented as data=cifar10": recipe, "augmented with timm's defaults": {}}
    claims = [c for what, augment in routes.items() for c in pipeline(what, pixels, labels, augment)]
    return [*claims, *(epoch(name, pixels, labels, recipe) for name in MODELS)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="lightning_fabric|pytorch_lightning")
    sys.stdout.write(table(measure()) + "\n")
