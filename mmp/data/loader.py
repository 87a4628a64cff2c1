"""Training batches whose order and random augmentation depend only on the seed and the epoch.

An interrupted training can therefore resume at any batch, with any number of workers, and gives the same result.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate


def mixed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all given numbers."""
    return random.Random("/".join(map(str, numbers))).getrandbits(63)  # noqa: S311 (hashes a string with SHA-512)


class EpochShuffle(Sampler[int]):
    """A permutation of the images that depends only on the seed and the epoch.

    It yields ``epoch * length + image``, so that worker processes know the epoch (see :class:`Split`). In a distributed
    training, each rank gets an equal share of the images; a remainder is left out of the epoch.

    Args:
        length: Number of images.
        seed: Seed of the run.
        ranks: Number of processes that share the images.

    Attributes:
        epoch: The next epoch; Lightning sets it at the start of each epoch.
        first: Number of images of the next epoch to skip, because a resumed training has already seen them.
    """

    def __init__(self, length: int, seed: int, ranks: int = 1) -> None:
        self._length, self._seed, self._ranks = length, seed, ranks
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next permutation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length // self._ranks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self._length, generator=generator) + self.epoch * self._length
        rank = torch.distributed.get_rank() if self._ranks > 1 else 0
        first, self.first = self.first, 0
        return iter(order[rank :: self._ranks][first : len(self)].tolist())


class Split(Dataset[Any]):
    """A subset of a data set's images.

    Index ``n * len(self) + i`` returns the i-th image of the subset, augmented for epoch n.

    Args:
        images: The data set.
        indices: Indices of the images in the data set.
        seed: Seed of the augmentation, which depends only on the seed, the epoch and the image; None without one.
    """

    def __init__(self, images: Any, indices: Sequence[int], seed: int | None = None) -> None:
        self.images, self.indices, self._seed = images, indices, seed
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        epoch, place = divmod(index, len(self))
        if self._seed is None:
            return self.images[self.indices[place]]
        if hasattr(self.images, "augmented"):
            return tuple(part[0] for part in self.__getitems__([index]))
        with isolate_rng(include_cuda=False):
            random.seed(mixed(self._seed, epoch, place))
            np.random.seed(random.getrandbits(32))  # noqa: NPY002 (transforms draw from it)
            torch.default_generator.manual_seed(random.getrandbits(63))
            return self.images[self.indices[place]]

    def __getitems__(self, indices: list[int]) -> Any:
        if self._seed is None and hasattr(self.images, "__getitems__"):
            return self.images.__getitems__([self.indices[index % len(self)] for index in indices])
        if self._seed is not None and hasattr(self.images, "augmented"):
            chosen = [self.indices[index % len(self)] for index in indices]
            return self.images.augmented(chosen, self._uniforms(torch.as_tensor(indices), self._seed))
        return [self[index] for index in indices]

    def to(self, device: torch.device) -> Split:
        """Return the same subset, from a copy of its images on a device, which then prepares the batches."""
        return Split(self.images.to(device, self.indices), range(len(self)), self._seed)

    def _uniforms(self, indices: Tensor, seed: int) -> Tensor:
        """Return random numbers in [0, 1), one row per index. A whole epoch's numbers are drawn at once and kept."""
        epochs = indices // len(self)
        rows = torch.empty(len(indices), self.images.draws)
        for epoch in epochs.unique().tolist():
            if self._drawn[0] != epoch:
                generator = torch.Generator().manual_seed(mixed(seed, epoch))
                self._drawn = epoch, torch.rand(len(self), self.images.draws, generator=generator)
            rows[epochs == epoch] = self._drawn[1][indices[epochs == epoch] % len(self)]
        return rows


class EpochLoader(DataLoader[Any]):
    """Training batches that can resume in the middle of an epoch; Lightning saves ``state_dict`` in every checkpoint.

    Args:
        images: The images.
        batch_size: Images per batch. The last batch of an epoch is dropped if it is smaller, unless it is the only one.
        sampler: The order of the images.
        options: Further arguments of ``DataLoader``.

    Attributes:
        most: Number of batches that the training takes from each epoch.
    """

    def __init__(self, images: Dataset[Any], batch_size: int, sampler: EpochShuffle, **options: Any) -> None:
        super().__init__(
            images, batch_size, sampler=sampler, drop_last=len(sampler) > batch_size, collate_fn=collate, **options
        )
        self._order, self._size, self._seen = sampler, batch_size, 0
        self.most = len(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._seen = self._order.first // self._size
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the number of its batches that have been returned."""
        return {"epoch": self._order.epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at the batch at which a checkpoint was written."""
        over = state["batches"] >= self.most
        self._order.epoch = state["epoch"] + over
        self._order.first = 0 if over else state["batches"] * self._size


def collate(batch: Any) -> Any:
    """Stack samples to a batch; return a batch that the data set has already stacked unchanged."""
    return default_collate(batch) if isinstance(batch, list) else batch
