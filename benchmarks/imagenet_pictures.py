"""A thousand pictures of ImageNet, one of each class, in splits that share no picture.

A stratified split is impossible with one picture of a class, so pictures are divided by chance: 500 test, the seed
divides the others into 256 that calibrate and 244 that validate. Nothing is left to train on. The folder holds the
pictures and ``labels.tsv``, with the name of a file and the number of its class in each line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from mmp.config.schema import DataConfig
from mmp.data.images import Samples, files_of, of_files, recipe_of
from mmp.data.loader import Split
from mmp.data.module import ImageData
from mmp.errors import MmpError, first_line

TEST, CALIBRATION = 500, 256
LABELS = "labels.tsv"


class OnePictureEach(ImageData):
    """The pictures of a folder in four splits, of which the training split is empty.

    Args:
        cfg: The data set; its ``root`` is the folder.
        seed: Seed of the validation and the calibration split. The test split does not depend on it.

    Raises:
        MmpError: if the list of labels is missing or damaged, or there are too few pictures.
    """

    def __init__(self, cfg: DataConfig, seed: int) -> None:
        pl.LightningDataModule.__init__(self)
        self.cfg, self.seed, self.class_names = cfg, seed, None
        root = Path(cfg.root or ".")
        images = of_files(read_labels(root, cfg.classes), root, cfg)[1]
        self.indices = divided(len(images), seed, root)
        self.recipe, self.fingerprint = recipe_of(images, cfg), (files_of(images) or images).fingerprint()
        self._sets = {name: Split(images, indices.tolist()) for name, indices in self.indices.items()}


def divided(count: int, seed: int, root: Path) -> dict[str, np.ndarray]:
    """Return the sorted indices of each split.

    Args:
        count: Number of pictures.
        seed: Seed of the validation and the calibration split.
        root: Their folder, for the error message.

    Raises:
        MmpError: if there are too few pictures.
    """
    if count <= TEST + CALIBRATION:
        raise MmpError(f"{root}: has {count} pictures, but {TEST} test and {CALIBRATION} calibrate; add pictures")
    test, rest = np.split(np.random.default_rng(0).permutation(count), [TEST])
    calibration, validation = np.split(np.random.default_rng(seed).permutation(rest), [CALIBRATION])
    splits = {"train": rest[:0], "validation": validation, "calibration": calibration, "test": test}
    return {name: np.sort(indices) for name, indices in splits.items()}


def read_labels(root: Path, classes: int) -> Samples:
    """Return path and class of every picture of a folder, in the order of its list.

    Raises:
        MmpError: if the list is missing or damaged, or has other classes.
    """
    path = root / LABELS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MmpError(
            f"{path}: no list of pictures and classes ({first_line(error)}); set root to its folder"
        ) from error
    samples = []
    for line in filter(str.strip, lines):
        name, _, label = line.partition("\t")
        if not label.strip().isdecimal() or int(label) >= classes:
            raise MmpError(f"{path}: {line!r} is no file and number of a class below {classes}; get the file again")
        samples.append((str(root / name), int(label)))
    return samples
