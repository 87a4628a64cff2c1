"""Small data sets in the file formats of the real ones."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_cifar_batch(path: Path, count: int, labels: dict[str, int], protocol: int = 2, seed: int = 0) -> np.ndarray:
    """Write a CIFAR batch: a pickled dict with rows of 3,072 bytes, first all red values, then green, then blue."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    content: dict[str, Any] = {
        "data": pixels,
        "batch_label": path.name,
        "filenames": [f"{i}.png" for i in range(count)],
    }
    content |= {key: [i % classes for i in range(count)] for key, classes in labels.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return pixels.reshape(-1, 3, 32, 32)


def write_cifar10(root: Path, protocol: int = 2, count: int = 60) -> dict[str, np.ndarray]:
    folder = root / "cifar-10-batches-py"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: write_cifar_batch(folder / name, count, {"labels": 10}, protocol, i) for i, name in enumerate(names)}


def write_cifar_records(path: Path, pixels: np.ndarray, *labels: np.ndarray) -> None:
    """Write a file of CIFAR's binary version: a byte for each label of a picture, and its pixels (N, 3, 32, 32)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    path.write_bytes(np.concatenate([*columns, pixels.reshape(len(pixels), -1)], axis=1).tobytes())


def write_gtsrb(root: Path, tracks: int = 4, frames: int = 4, classes: int = 43) -> None:
    """Write GTSRB as torchvision unpacks it: PPM files, one folder per class, and a table of the test images."""
    training, test = root / "gtsrb" / "GTSRB" / "Training", root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(classes):
        folder = training / f"{label:05d}"
        folder.mkdir(parents=True)
        for track in range(tracks):
            for frame in range(frames):
                image = Image.new("RGB", (20, 25), (5 * label, 60 * track, frame))
                image.save(folder / f"{track:05d}_{frame:05d}.ppm")
        (folder / f"GT-{label:05d}.csv").write_text(lines[0] + "\n")
        Image.new("RGB", (30, 18), (5 * label, 0, 0)).save(test / f"{classes - 1 - label:05d}.ppm")
        lines.append(f"{classes - 1 - label:05d}.ppm;30;18;1;1;9;9;{label}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes in the IDX format of MNIST, gzipped if the name ends in ``.gz``."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder: Path, suffix: str = "", train: int = 100, test: int = 20) -> Path:
    """Write the four files of Fashion-MNIST, with pixel values that count up."""
    for stem, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 251
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return folder
