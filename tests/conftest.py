from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import resources
import torch
from hypothesis import settings
from places import CONF
from torch import nn

from mmp.data import readers

pytest_plugins = ["pytester"]

# The first call into torch is slow and the machines of a test run are shared, so time is no failure.
settings.register_profile("mmp", deadline=None)
settings.load_profile("mmp")

# Where the tests were started in the background, Ctrl-C is ignored, in all processes that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A developer's account and settings of W&B are none of a test's, nor is any server of it.
for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]
os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": os.devnull}


def pytest_configure() -> None:
    """Stop where a required resource is missing, and keep hidden images from the tests that do not ask for them."""
    resources.require()
    if "data" in resources.hidden():
        readers.FASHION_MNIST_FOLDERS = readers.FASHION_MNIST_FOLDERS[1:]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Close the summary with the ways to get what skipped tests need."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    for sentence in resources.ways(report.longrepr[2] for report in reports):
        terminalreporter.write_line(sentence)


@pytest.fixture(scope="session")
def conf() -> Path:
    """The folder of configurations that users get."""
    return CONF


@pytest.fixture
def conv_net() -> nn.Module:
    """Return a small network with everything that scoring has to leave alone: BatchNorm, dropout, biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def image_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches of 2-channel 8x8 images with three classes, the last batch smaller."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 8, 3)
    ]
