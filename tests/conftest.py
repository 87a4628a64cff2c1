from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import resources
from hypothesis import settings
from places import CONF

from mmp.openmp import bound_spin

bound_spin()  # before torch is imported
gc.disable()  # until all modules and tests are there
import torch  # noqa: E402
from torch import nn  # noqa: E402

from mmp.data import readers  # noqa: E402

pytest_plugins = ["pytester"]

# The first call into torch is slow, and test machines are shared, so slow examples are no failures.
settings.register_profile("mmp", deadline=None)
settings.load_profile("mmp")

# A shell starts background commands with SIGINT ignored, which child processes inherit; tests send it to them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests use neither a developer's W&B account and settings nor a W&B server.
for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]
os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": os.devnull}


def pytest_configure() -> None:
    """Stop where a required resource is missing; hide images also from tests that are not marked as needing them."""
    resources.require()
    if "data" in resources.hidden():
        readers.FASHION_MNIST_FOLDERS = readers.FASHION_MNIST_FOLDERS[1:]


def pytest_collection_finish() -> None:
    """Exclude all tests and modules from the searches for garbage, which are frequent and would look at all of them."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """End the summary with the ways to get the resources that skipped tests need."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    for sentence in resources.ways(report.longrepr[2] for report in reports):
        terminalreporter.write_line(sentence)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after each test: a command that ends ignores both from then on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def conf() -> Path:
    """Return the folder of configurations that the package carries."""
    return CONF


@pytest.fixture
def conv_net() -> nn.Module:
    """Return a small network with parts that scoring must leave unchanged: BatchNorm, dropout, biases."""
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
    """Return three batches of 2-channel 8x8 images with three classes; the last batch is smaller."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 8, 3)
    ]
