"""Data: real images in four splits that never overlap - train, validation, calibration, test.

A reader returns training images and, where the data set has one, its official test set. The splits are made
here, stratified by class and by the seed of the run, except for the test split, which is the same for every
seed so that results can be compared. A new data set is a reader and a YAML file in ``conf/data``.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from mmp.config import DataConfig
from mmp.errors import MmpError, nearest

SPLITS = ("train", "validation", "calibration", "test")


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, normalised a whole batch at a time.

    Args:
        images: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.labels = images, labels
        self._scale = (1 / (255 * torch.tensor(std))).view(-1, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float() * self._scale - self._shift, self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return one batch: float32 (B, C, H, W) and int64 (B,)."""
        where = torch.as_tensor(indices)
        return self.images[where].float() * self._scale - self._shift, self.labels[where]

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        sha = hashlib.sha256(self.images.numpy().data)
        sha.update(self.labels.numpy().data)
        return sha.hexdigest()


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Image files in one folder per class, read by torchvision and transformed by timm.

    Args:
        root: Folder with one folder per class.
        cfg: Size, mean and standard deviation.
        training: Whether to use timm's training augmentation.

    Raises:
        MmpError: if the folder is missing or has another number of classes than the config says.
    """

    def __init__(self, root: Path, cfg: DataConfig, training: bool) -> None:
        from timm.data import create_transform
        from torchvision.datasets import ImageFolder

        _require_folder(root, "put one folder of images per class there")
        size = (cfg.channels, cfg.image_size, cfg.image_size)
        transform = create_transform(size, is_training=training, mean=tuple(cfg.mean), std=tuple(cfg.std))
        try:
            self._folder = ImageFolder(str(root), transform=transform)
        except FileNotFoundError as error:
            raise MmpError(f"{root}: {error}") from error
        if len(self._folder.classes) != cfg.classes:
            raise MmpError(f"data.classes={cfg.classes}, but {root} has {len(self._folder.classes)} class folders")
        self.labels = torch.tensor(self._folder.targets)

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self._folder[index]
        except (OSError, SyntaxError) as error:
            raise MmpError(f"{self._folder.samples[index][0]}: not a readable image ({error})") from error

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names and sizes of all files."""
        sha = hashlib.sha256()
        root = Path(self._folder.root)
        for name, label in self._folder.samples:
            path = Path(name)
            sha.update(f"{path.relative_to(root)}|{path.stat().st_size}|{label}\n".encode())
        return sha.hexdigest()


Images = TensorImages | FolderImages
# A reader returns the training images, the same images as they are evaluated, and the test set if there is one.
Reader = Callable[[DataConfig], tuple[Images, Images, Images | None]]


def read_digits(cfg: DataConfig) -> tuple[Images, Images, None]:
    """Read scikit-learn's digits: 1,797 images of 8x8, resized to ``cfg.image_size``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    images = _in_memory(pixels, torch.from_numpy(bunch.target).long(), cfg)
    return images, images, None


FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's package
    Path("data/FashionMNIST/raw"),  # torchvision's place below root="data"
)


def read_fashion_mnist(cfg: DataConfig) -> tuple[Images, Images, Images]:
    """Read Fashion-MNIST's four IDX files, gzipped or not, from ``data.root`` or where Debian puts them.

    Raises:
        MmpError: if a file is missing, truncated or not IDX; with the way to get the data.
    """
    if cfg.root is not None:
        root = Path(cfg.root)
        folders: Sequence[Path] = (root, root / "FashionMNIST" / "raw")
    else:
        folders = FASHION_MNIST_FOLDERS
    name = "train-images-idx3-ubyte"
    found = next((f for f in folders if (f / name).is_file() or (f / f"{name}.gz").is_file()), None)
    if found is None:
        raise MmpError(
            f"Fashion-MNIST is not in {' or '.join(map(str, folders))}; get it with `apt-get install "
            "dataset-fashion-mnist`, or with torchvision.datasets.FashionMNIST('data', download=True), or point "
            "data.root at the folder of its four IDX files"
        )

    def part(stem: str) -> Images:
        pixels = torch.from_numpy(read_idx(found / f"{stem}-images-idx3-ubyte", dimensions=3)).unsqueeze(1)
        labels = torch.from_numpy(read_idx(found / f"{stem}-labels-idx1-ubyte", dimensions=1)).long()
        if len(pixels) != len(labels):
            raise MmpError(f"{found}: {len(pixels)} {stem} images but {len(labels)} labels")
        return _in_memory(pixels, labels, cfg)

    train = part("train")
    return train, train, part("t10k")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes (LeCun's MNIST format), gzipped if only ``path``.gz exists.

    Args:
        path: Where the plain file would be.
        dimensions: How many dimensions it must have.

    Returns:
        uint8 array.

    Raises:
        MmpError: if it is missing, truncated or something else.
    """
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise MmpError(f"{path}: cannot be read ({error}); the file is missing or truncated") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise MmpError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape))
    if len(content) != expected:
        raise MmpError(f"{path}: has {len(content)} bytes, but its header promises {expected}; the file is truncated")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_imagefolder(cfg: DataConfig) -> tuple[Images, Images, Images | None]:
    """Read ``<root>/train/<class>/*`` and, if it is there, ``<root>/test/<class>/*``."""
    root = Path(cfg.root or ".")
    _require_folder(root / "train", "put one folder of training images per class there")
    test = FolderImages(root / "test", cfg, training=False) if (root / "test").is_dir() else None
    return (
        FolderImages(root / "train", cfg, training=True),
        FolderImages(root / "train", cfg, training=False),
        test,
    )


READERS: dict[str, Reader] = {
    "digits": read_digits,
    "fashion_mnist": read_fashion_mnist,
    "imagefolder": read_imagefolder,
}


def _in_memory(pixels: Tensor, labels: Tensor, cfg: DataConfig) -> TensorImages:
    size = (cfg.image_size, cfg.image_size)
    if pixels.shape[-2:] != size:
        resized = interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    return TensorImages(pixels, labels, cfg.mean, cfg.std)


def _require_folder(path: Path, way_out: str) -> None:
    if not path.is_dir():
        raise MmpError(f"{path}: no such folder; {way_out}, or set data.root")


def split_indices(labels: np.ndarray, cfg: DataConfig, seed: int, official_test: bool) -> dict[str, np.ndarray]:
    """Split images into disjoint sets, stratified by class.

    Args:
        labels: Class of every training image, shape (N,).
        cfg: Fractions; ``test`` of all images, ``validation`` and ``calibration`` of those left for training.
        seed: Decides validation and calibration. The test split does not depend on it.
        official_test: Whether a test set exists elsewhere, so that none is taken from these images.

    Returns:
        Sorted indices per split; without ``test`` if the test set is elsewhere.

    Raises:
        MmpError: if a class has too few images to be split.
    """
    splits: dict[str, np.ndarray] = {}
    rest = np.arange(len(labels))
    try:
        if not official_test:
            rest, splits["test"] = train_test_split(rest, test_size=cfg.test, random_state=0, stratify=labels)
        count = len(rest)
        for name, share in (("validation", cfg.validation), ("calibration", cfg.calibration)):
            rest, splits[name] = train_test_split(
                rest, test_size=max(1, round(share * count)), random_state=seed, stratify=labels[rest]
            )
    except ValueError as error:
        raise MmpError(f"data={cfg.name}: {len(labels)} images cannot be split as configured ({error})") from error
    splits["train"] = rest
    return {name: np.sort(indices) for name, indices in splits.items()}


class EpochShuffle(Sampler[int]):
    """A permutation that depends on the seed and the epoch alone, so a resumed run sees what it would have seen.

    Args:
        length: Number of samples.
        seed: Seed of the run.
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed, self._epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(torch.randperm(self._length, generator=generator).tolist())


class ImageData(pl.LightningDataModule):
    """A data set in its four splits.

    Args:
        cfg: The data set.
        seed: Seed of the splits and of the order of training batches.

    Raises:
        MmpError: if the reader is unknown, or the data missing or damaged.
    """

    def __init__(self, cfg: DataConfig, seed: int) -> None:
        super().__init__()
        if cfg.reader not in READERS:
            raise MmpError(f"data.reader={cfg.reader}; {nearest(cfg.reader, READERS)}")
        self.cfg, self.seed = cfg, seed
        train, plain, test = READERS[cfg.reader](cfg)
        labels = train.labels.numpy()
        if len(labels) and labels.max() >= cfg.classes:
            raise MmpError(f"data.classes={cfg.classes}, but {cfg.name} has a label {labels.max()}")
        self.indices = split_indices(labels, cfg, seed, official_test=test is not None)
        self.fingerprint = hashlib.sha256(
            (plain.fingerprint() + (test.fingerprint() if test is not None else "")).encode()
        ).hexdigest()
        self._sets: dict[str, Dataset[Any]] = {
            name: Subset(train if name == "train" else plain, indices.tolist())
            for name, indices in self.indices.items()
        }
        if test is not None:
            self._sets["test"] = test

    @property
    def samples(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(self._sets[name]) for name in SPLITS}  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled training batches; the last incomplete one is dropped if it is not the only one."""
        sampler = EpochShuffle(self.samples["train"], self.seed)
        return self._loader("train", sampler=sampler, drop_last=len(sampler) > self.cfg.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return validation batches, in order."""
        return self._loader("validation")

    def calibration_dataloader(self) -> DataLoader[Any]:
        """Return calibration batches of the training size, in order."""
        return self._loader("calibration", batch_size=self.cfg.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return test batches, in order."""
        return self._loader("test")

    def _loader(self, split: str, batch_size: int | None = None, **options: Any) -> DataLoader[Any]:
        size = self.cfg.batch_size if split == "train" else batch_size or self.cfg.eval_batch_size
        return DataLoader(
            self._sets[split],
            batch_size=size,
            num_workers=self.cfg.workers,
            persistent_workers=self.cfg.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
            **options,
        )


def _collate(batch: Any) -> Any:
    # TensorImages hands over whole batches already; a folder of files hands over a list of samples.
    return default_collate(batch) if isinstance(batch, list) else batch
