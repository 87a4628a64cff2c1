"""Data: real images in four splits that never overlap - train, validation, calibration, test.

A reader (``mmp.data.readers``) returns training images and, where the data set has them, its official validation and
test sets. The other splits are made here, stratified by class and by the seed of the run, except for the test split,
which is the same for every seed so that results can be compared. A new data set is a reader and a YAML file in
``conf/data``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader

from mmp.config.schema import DataConfig
from mmp.data.copies import Part, groups_of_copies, report_copies
from mmp.data.image_files import FileImages
from mmp.data.images import AugmentedImages, Images, Source, TensorImages, files_of, recipe_of
from mmp.data.loader import EpochLoader, EpochShuffle, Split, collate
from mmp.data.readers import READERS
from mmp.errors import MmpError, nearest
from mmp.tensors import free_memory_of

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
PREPARING = ("cuda",)  # kinds of devices that prepare batches of images in memory themselves
SPLITS = ("train", "validation", "calibration", "test")


def split_indices(
    labels: np.ndarray,
    cfg: DataConfig,
    seed: int,
    official_test: bool,
    groups: np.ndarray | None = None,
    official_validation: bool = False,
) -> dict[str, np.ndarray]:
    """Split images into disjoint sets, stratified by class.

    Args:
        labels: Class of every training image, shape (N,).
        cfg: The fractions: ``test`` of all images, ``validation`` and ``calibration`` of the others.
        seed: Seed of the validation and the calibration split. The test split does not depend on it.
        official_test: Whether the data set has an official test set; if so, no test split is made.
        groups: Group of every image, shape (N,). Groups are never divided, and the fractions are fractions of groups.
        official_validation: Whether the data set has an official validation set; if so, no validation split is made.

    Returns:
        Sorted indices of each split; without ``test`` and ``validation`` if there are official sets.

    Raises:
        MmpError: if a class has too few images, or a fraction is too small for all classes.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    labels = labels[first]
    names, counts = np.unique(labels, return_counts=True)
    needed = len(SPLITS) - official_test - official_validation
    if counts.min() < needed:
        what = "images" if len(first) == len(group_of) else "groups of images"
        worst = names[counts.argmin()]
        raise MmpError(
            f"data={cfg.name}: class {worst} has {counts.min()} {what}, but {needed} splits need one each; add images "
            "of this class, or leave the class out"
        )
    splits: dict[str, np.ndarray] = {}
    rest = np.arange(len(labels))
    if not official_test:
        rest, splits["test"] = _divide(rest, labels, cfg, "test", math.ceil(cfg.test * len(rest)), seed=0)
    count = len(rest)
    for name in ("calibration",) if official_validation else ("validation", "calibration"):
        rest, splits[name] = _divide(rest, labels, cfg, name, round(getattr(cfg, name) * count), seed)
    splits["train"] = rest
    return {name: np.flatnonzero(np.isin(group_of, chosen)) for name, chosen in splits.items()}


def _divide(
    rest: np.ndarray, labels: np.ndarray, cfg: DataConfig, name: str, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide indices into the rest and a split of a given size, stratified by class."""
    share, classes = getattr(cfg, name), len(np.unique(labels))
    if size < classes:
        least = math.ceil(1000 * share * classes / max(size, 0.5)) / 1000
        raise MmpError(
            f"data.{name}={share:g}: makes a split of {size}, but each of {classes} classes must be in it; "
            f"set it to at least {least:g}"
        )
    try:
        return train_test_split(rest, test_size=size, random_state=seed, stratify=labels[rest])
    except ValueError as error:
        raise MmpError(
            f"data.{name}={share:g}: leaves too few images of {cfg.name} for the other splits ({error}); lower it"
        ) from error


def _split(source: Source, cfg: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """Split the training images of a data set. Copies of an image with the same label go into the same split."""
    labels, official = source.plain.labels.numpy(), (source.test is not None, source.validation is not None)
    groups = source.groups
    if groups is None and (files := files_of(source.plain)) is not None:
        copies = groups_of_copies(files.digests, labels.tolist())
        if copies is not None:
            try:
                return split_indices(labels, cfg, seed, official[0], copies, official[1])
            except MmpError as error:
                log.warning("copies of one image may be in two splits, since they cannot be kept together (%s)", error)
    return split_indices(labels, cfg, seed, official[0], groups, official[1])


def _parts(source: Source, indices: dict[str, np.ndarray]) -> Iterator[Part]:
    """Yield the splits whose images are files."""
    official = {"validation": source.validation, "test": source.test}
    for split in SPLITS:
        images = official.get(split) or source.plain
        if (files := files_of(images)) is not None:
            yield Part(split, files, indices[split].tolist() if split in indices else range(len(images)))


def _require_classes(cfg: DataConfig, images: Mapping[str, Images]) -> None:
    """Raise an error if an image has a label that is no class, or the last classes have no training image."""
    highest = {part: int(one.labels.max()) for part, one in images.items() if len(one)}
    for part, label in highest.items():
        if label >= cfg.classes:
            raise MmpError(
                f"data.classes={cfg.classes}, but a {part} image of {cfg.name} has label {label}; set data.classes to "
                f"at least {label + 1}"
            )
    if (last := highest.get("training", cfg.classes - 1)) < cfg.classes - 1:
        raise MmpError(
            f"data.classes={cfg.classes}, but the highest label of a training image of {cfg.name} is {last}; set "
            f"data.classes={last + 1}"
        )


class ImageData(pl.LightningDataModule):
    """A data set in its four splits.

    Args:
        cfg: The data set.
        seed: Seed of the splits and of the order of training batches.
        cache: The cache that runs share. It keeps the digests of image files, so that unchanged files are not read
            again to identify them; None reads all files.

    Attributes:
        indices: Indices of the images in each split.
        recipe: Instructions that prepare an image for evaluation, for users who run a model elsewhere.
        fingerprint: SHA-256 of the images, their classes and, for folders of images, the names of the classes.
        class_names: Name of every class, in the order of the model's outputs; None if the data set does not state them.

    Raises:
        MmpError: if the reader is unknown, or if the data are missing, damaged, or have other classes than configured.
    """

    def __init__(self, cfg: DataConfig, seed: int, cache: Path | None = None) -> None:
        super().__init__()
        if cfg.reader not in READERS:
            raise MmpError(f"data.reader={cfg.reader}: no such reader; {nearest(cfg.reader, READERS)}")
        self.cfg, self.seed = cfg, seed
        source = READERS[cfg.reader](cfg)
        train, plain = source.train, source.plain
        official = {"validation": source.validation, "test": source.test}
        given = {name: images for name, images in official.items() if images is not None}
        for images in (plain, *given.values()):
            if isinstance(images, FileImages):
                images.memory = cache and cache / "images"
                images.check()
        _require_classes(cfg, {"training": plain, **given})
        self.class_names = source.classes if len(source.classes or ()) == cfg.classes else None
        self.indices = _split(source, cfg, seed)
        report_copies(list(_parts(source, self.indices)))
        self.recipe = recipe_of(plain, cfg)
        fingerprints = {name: images.fingerprint() for name, images in given.items()}
        named = "validation" + fingerprints["validation"] if "validation" in fingerprints else ""
        content = plain.fingerprint() + fingerprints.get("test", "") + named
        if cfg.in_memory and cfg.reader == "imagefolder":  # the pixels do not tell the names of the folders
            content += json.dumps(source.classes)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._sets: dict[str, Any] = {
            name: Split(plain, indices.tolist()) for name, indices in self.indices.items() if name != "train"
        }
        self._sets["train"] = Split(train, self.indices["train"].tolist(), None if cfg.augment is None else seed)
        self._sets |= given

    @property
    def samples(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(self._sets[name]) for name in SPLITS}

    def train_dataloader(self, ranks: int = 1, device: torch.device = CPU) -> EpochLoader:
        """Return shuffled training batches. The last batch is dropped if it is smaller, unless it is the only one.

        Args:
            ranks: Number of processes of a distributed training; each gets its own batches.
            device: The device that reads the batches. A GPU prepares them itself, see :meth:`val_dataloader`.
        """
        order = EpochShuffle(self.samples["train"], self.seed, ranks)
        images, options = self._placed("train", device if ranks == 1 else CPU)
        return EpochLoader(images, self.cfg.batch_size, order, **options)

    def val_dataloader(self, device: torch.device = CPU) -> DataLoader[Any]:
        """Return validation batches, in order.

        Args:
            device: The device that reads the batches. A GPU gets a copy of a split that is in memory, unless it takes
                more than a sixteenth of the GPU's free memory, and prepares the batches itself, without workers.
        """
        return self._loader("validation", device=device)

    def calibration_dataloader(self) -> DataLoader[Any]:
        """Return calibration batches of the training size, in order."""
        return self._loader("calibration", batch_size=self.cfg.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return test batches, in order."""
        return self._loader("test")

    @property
    def _workers(self) -> dict[str, Any]:
        workers = self.cfg.workers
        # A job that joblib runs in a worker process finds joblib's start method there, with which DataLoader cannot
        # start processes; they start as they do on this platform by default.
        method = multiprocessing.get_all_start_methods()[0] if workers else None
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "multiprocessing_context": method,
        }

    def _loader(self, split: str, batch_size: int | None = None, device: torch.device = CPU) -> DataLoader[Any]:
        images, options = self._placed(split, device)
        return DataLoader(images, batch_size or self.cfg.eval_batch_size, collate_fn=collate, **options)

    def _placed(self, split: str, device: torch.device) -> tuple[Any, dict[str, Any]]:
        """Return the images of a split, on the device if it has room for them, and options of their loader."""
        images = self._sets[split]
        subset = images if isinstance(images, Split) else Split(images, range(len(images)))
        if device.type not in PREPARING or not isinstance(subset.images, TensorImages | AugmentedImages):
            return images, self._workers
        needed = len(subset) * subset.images.images[:1].nbytes
        return (subset.to(device), {}) if needed <= free_memory_of(device) / 16 else (images, self._workers)
