"""Random numbers of experiments, which are the same in every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the CPU's generator for a ``with`` block, and restore its state afterwards.

    Experiments run on the CPU, so that they are the same on all machines. The generators of GPUs are not touched:
    ``torch.manual_seed`` would seed them, and to save their states, torch would initialise every GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
