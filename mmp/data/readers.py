"""Readers: one function per data set, from its files on disk to a :class:`mmp.data.images.Source`."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmp.config.schema import DataConfig
from mmp.data.cifar_files import CIFAR10, CIFAR100, CifarFiles
from mmp.data.class_folders import evaluation_folders, training_folders
from mmp.data.images import Images, Source, in_memory, of_files
from mmp.data.split_folders import split_folders
from mmp.errors import MmpError
from mmp.files import locked


def read_digits(cfg: DataConfig) -> Source:
    """Read scikit-learn's digits: 1,797 images of 8x8 pixels, resized to ``data.image_size``."""
    train, plain = in_memory(*_digits(), cfg)
    return Source(train, plain, classes=tuple("0123456789"))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 255], (1797, 1, 8, 8), and labels. Cached: parsing scikit-learn's text file is slow."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return pixels, torch.from_numpy(bunch.target).long()


FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's package
    Path("data/FashionMNIST/raw"),  # where torchvision downloads to, with root="data"
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(cfg: DataConfig) -> Source:
    """Read Fashion-MNIST's four IDX files, gzipped or not, from ``data.root`` or from the folder of Debian's package.

    Raises:
        MmpError: if a file is missing, truncated or not IDX; the message says how to get the data.
    """
    from torchvision.datasets import FashionMNIST

    if cfg.download:
        _download(FashionMNIST, cfg, train=True)
    if cfg.root is not None:
        root = Path(cfg.root)
        folders: Sequence[Path] = (root, root / "FashionMNIST" / "raw")
    else:
        folders = FASHION_MNIST_FOLDERS
    name = "train-images-idx3-ubyte"
    found = next((f for f in folders if (f / name).is_file() or (f / f"{name}.gz").is_file()), None)
    if found is None:
        raise MmpError(
            f"data={cfg.name}: Fashion-MNIST is not in {' or '.join(map(str, folders))}; get it with `apt-get "
            "install dataset-fashion-mnist`, or with data.download=true data.root=data, or set data.root to the folder "
            "of its four IDX files"
        )

    def part(stem: str) -> tuple[Images, Images]:
        pixels = torch.from_numpy(read_idx(found / f"{stem}-images-idx3-ubyte", dimensions=3)).unsqueeze(1)
        labels = torch.from_numpy(read_idx(found / f"{stem}-labels-idx1-ubyte", dimensions=1)).long()
        if len(pixels) != len(labels):
            raise MmpError(f"{found}: {len(pixels)} {stem} images but {len(labels)} labels; get the files again")
        return in_memory(pixels, labels, cfg)

    return Source(*part("train"), part("t10k")[1], classes=FASHION_MNIST_CLASSES)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes (LeCun's MNIST format).

    Args:
        path: The file. If it does not exist, the gzipped file of this name with the suffix ``.gz`` is read.
        dimensions: Number of dimensions that the array must have.

    Returns:
        uint8 array.

    Raises:
        MmpError: if the file is missing, truncated, or of another format.
    """
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise MmpError(f"{path}: cannot be read ({error}); get the file again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise MmpError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions; get the file again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape))
    if len(content) != expected:
        raise MmpError(f"{path}: has {len(content)} bytes instead of {expected}; the file is truncated, get it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_cifar10(cfg: DataConfig) -> Source:
    """Read CIFAR-10 from ``<root>/cifar-10-batches-py`` or from its binary version, ``<root>/cifar-10-batches-bin``."""
    return _read_cifar(cfg, "CIFAR10", CIFAR10)


def read_cifar100(cfg: DataConfig) -> Source:
    """Read CIFAR-100, with the 100 fine labels, from ``<root>/cifar-100-python`` or ``<root>/cifar-100-binary``."""
    return _read_cifar(cfg, "CIFAR100", CIFAR100)


def _read_cifar(cfg: DataConfig, reader: str, versions: Sequence[CifarFiles]) -> Source:
    """Read the first version that has a folder; ``reader`` is the name of torchvision's class."""
    import torchvision.datasets

    if cfg.download:
        _download(getattr(torchvision.datasets, reader), cfg, train=True)
    root = Path(cfg.root or ".")
    files = next((files for files in versions if (root / files.folder).is_dir()), versions[0])
    folder = root / files.folder
    way_out = f"set data.download=true on a machine with internet, or unpack {reader}'s Python version there"
    _require_folder(folder, f"{way_out} or its binary version as {root / versions[1].folder}")

    def part(names: Sequence[str]) -> tuple[Images, Images]:
        batches = [files.read(folder / name) for name in names]
        pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in batches]))
        labels = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
        return in_memory(pixels, labels, cfg, resize_now=False)

    names = folder / files.names
    classes = files.read_names(names) if names.is_file() else None  # a subset of the data may have no names
    return Source(*part(files.train), part([files.test])[1], classes=classes)


def read_gtsrb(cfg: DataConfig) -> Source:
    """Read the German traffic signs (Stallkamp et al. 2012) from ``<root>/gtsrb``, with torchvision's reader.

    The training images are video frames: each physical sign is a track of about 30 frames. All frames of a track go
    into the same split; otherwise, validation images would be near duplicates of training images.

    Raises:
        MmpError: if the images, a class or the test labels are missing.
    """
    from torchvision.datasets import GTSRB

    if cfg.download:
        _download(GTSRB, cfg, split="train")
        _download(GTSRB, cfg, split="test")
    root = Path(cfg.root or ".")
    folder = root / "gtsrb" / "GTSRB" / "Training"
    way_out = "set data.download=true on a machine with internet, or unpack GTSRB there"
    _require_folder(folder, way_out)
    # torchvision numbers the folders that it finds, so a missing folder would shift the labels of all later ones.
    expected = [f"{label:05d}" for label in range(cfg.classes)]
    present = {path.name for path in folder.iterdir() if path.is_dir()}
    missing = [name for name in expected if name not in present or not any((folder / name).glob("*.ppm"))]
    if missing or present - set(expected):
        surplus = sorted(present - set(expected))
        what = f"no images of class {', '.join(missing)}" if missing else f"unexpected folder {', '.join(surplus)}"
        raise MmpError(f"{folder}: {what}; data.classes={cfg.classes} needs folders {expected[0]} to {expected[-1]}")
    try:
        train, test = (GTSRB(str(root), split=split)._samples for split in ("train", "test"))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise MmpError(
            f"{root / 'gtsrb'}: the test images or GT-final_test.csv are missing or damaged ({error}); get them again"
        ) from error
    tracks = [f"{Path(path).parent.name}/{Path(path).stem.split('_')[0]}" for path, _ in train]
    return Source(
        *of_files(train, root, cfg),
        of_files(test, root, cfg)[1],
        np.unique(tracks, return_inverse=True)[1],
        tuple(expected),
    )


def read_imagefolder(cfg: DataConfig) -> Source:
    """Read folders of images (:mod:`mmp.data.split_folders`) with one folder per class (:mod:`mmp.data.class_folders`).

    Raises:
        MmpError: if a folder is missing, or its classes differ from the configuration or from the training folder.
    """
    root = Path(cfg.root or ".")
    folders = split_folders(root)
    train = training_folders(folders.pop("train"), cfg.classes)
    others = {
        split: of_files(evaluation_folders(folder, train).samples, root, cfg)[1] for split, folder in folders.items()
    }
    return Source(
        *of_files(train.samples, root, cfg),
        test=others.get("test"),
        classes=train.classes,
        validation=others.get("validation"),
    )


READERS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": read_digits,
    "fashion_mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "gtsrb": read_gtsrb,
    "imagefolder": read_imagefolder,
}


def _download(dataset: Callable[..., Any], cfg: DataConfig, **part: Any) -> None:
    """Download a data set, once even if several jobs start at the same time."""
    root = Path(cfg.root or "data")
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / ".download.lock", f"the download of {cfg.name}"):
        try:
            dataset(str(root), download=True, **part)
        except (OSError, RuntimeError) as error:
            raise MmpError(
                f"data={cfg.name}: the download to {root} failed ({error}); try again, or put the files there yourself "
                "and set data.download=false"
            ) from error


def _require_folder(path: Path, way_out: str) -> None:
    if not path.is_dir():
        raise MmpError(f"{path}: no such folder; {way_out}, or correct data.root")
