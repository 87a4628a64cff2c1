"""Errors of one line for a network that cannot run on the images at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError, first_line


@contextmanager
def running(network: nn.Module, images: Any, subject: str) -> Iterator[None]:
    """Turn whatever a forward pass raises in a ``with`` block into an error of one line.

    Args:
        network: The network.
        images: The images that it runs on.
        subject: The setting or function that needs the pass, for the message.

    Raises:
        MmpError: if the network does not run on the images.
    """
    try:
        yield
    except Exception as error:  # a forward pass can raise any exception
        form = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"type {type(images).__name__}"
        raise MmpError(
            f"{subject}: {type(network).__name__} does not run on images of the {form} ({first_line(error)}); pass "
            "images of its real size, (B, C, H, W)"
        ) from error


def device_to_run(network: nn.Module, subject: str) -> torch.device:
    """Return the device of a network's parameters, or the CPU if it has none.

    Args:
        network: The network.
        subject: The setting or function that runs it, for the message.

    Raises:
        MmpError: if it is no module, or if a parameter is on the ``meta`` device, so that it cannot run.
    """
    if not isinstance(network, nn.Module):
        raise MmpError(f"{subject}: the network is a {type(network).__name__}; pass a torch.nn.Module")
    devices = [parameter.device for parameter in network.parameters()]
    if any(device.type == "meta" for device in devices):
        raise MmpError(
            f"{subject}: {type(network).__name__} is on the meta device, but groups of channels are found by running "
            "it; build it on another device"
        )
    return devices[0] if devices else torch.device("cpu")
