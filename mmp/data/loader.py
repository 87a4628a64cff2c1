"""The order of training images and whatever is random in them: functions of the seed and the epoch alone.

So a training that was interrupted goes on as if it had not been, from any batch, with any number of workers.
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
    """Return a seed of 63 bits that depends on all of some numbers."""
    return random.Random("/".join(map(str, numbers))).getrandbits(63)  # noqa: S311 (hashes a string by SHA-512)


class EpochShuffle(Sampler[int]):
    """A permutation that depends on the seed and the epoch alone; each rank of a distributed training gets a share.

    It yields ``epoch * length + image``, so that a worker process knows the epoch, too (see :class:`Split`).

    Args:
        length: Number of images.
        seed: Seed of the run.
        ranks: Number of processes that share the images; what does not divide evenly is left out for an epoch.

    Attributes:
        epoch: Which epoch comes next; Lightning sets it at the start of each.
        first: How many images of it are left out, once, because a training has seen them already.
    """

    def __init__(self, length: int, seed: int, ranks: int = 1) -> None:
        self._length, self._seed, self._ranks = length, seed, ranks
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
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
    """Some of a data set's images.

    Args:
        images: The data set.
        indices: Which of its images; ``n * len(indices) + i`` is the i-th of them in epoch n.
        seed: Makes what is random in an image a function of seed, epoch and image; None where nothing is.
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
            np.random.seed(random.getrandbits(32))  # noqa: NPY002 (what transforms draw from)
            torch.default_generator.manual_seed(random.getrandbits(63))
            return self.images[self.indices[place]]

    def __getitems__(self, indices: list[int]) -> Any:
        if self._seed is None and hasattr(self.images, "__getitems__"):
            return self.images.__getitems__([self.indices[index % len(self)] for index in indices])
        if self._seed is not None and hasattr(self.images, "augmented"):
            chosen = [self.indices[index % len(self)] for index in indices]
            return self.images.augmented(chosen, self._uniforms(torch.as_tensor(indices), self._seed))
        return [self[index] for index in indices]

    def _uniforms(self, indices: Tensor, seed: int) -> Tensor:
        """Return random numbers in [0, 1), a row an image: those of all images of an epoch are drawn at once."""
        epochs = indices // len(self)
        rows = torch.empty(len(indices), self.images.draws)
        for epoch in epochs.unique().tolist():
            if self._drawn[0] != epoch:
                generator = torch.Generator().manual_seed(mixed(seed, epoch))
                self._drawn = epoch, torch.rand(len(self), self.images.draws, generator=generator)
            rows[epochs == epoch] = self._drawn[1][indices[epochs == epoch] % len(self)]
        return rows


class EpochLoader(DataLoader[Any]):
    """Training batches that go on within an epoch: Lightning keeps ``state_dict`` in every checkpoint.

    Args:
        images: The images.
        batch_size: Images a batch; the last batch of an epoch is dropped if it is smaller and not the only one.
        sampler: Their order.
        options: Of ``DataLoader``.

    Attributes:
        most: How many batches of an epoch a training takes.
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
        """Return the epoch, and how many batches of it have been handed out."""
        return {"epoch": self._order.epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a checkpoint was written."""
        over = state["batches"] >= self.most
        self._order.epoch = state["epoch"] + over
        self._order.first = 0 if over else state["batches"] * self._size


def collate(batch: Any) -> Any:
    """Return a batch: as it is where a data set hands over whole ones, else stacked."""
    return default_collate(batch) if isinstance(batch, list) else batch
