"""The state of a tuning between two steps, which a checkpoint keeps."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from mmp.errors import MmpError
from mmp.tensors import load_tensors, save_tensors

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
_SIZE = "size"  # of a parameter's values, in the optimizer's groups
_FUSED = ("cuda",)  # kinds of devices with fused steps
_SMALLEST = 0.1  # of the median size; below it, a parameter such as a shift of zeros would not move


@dataclass
class TuningState:
    """The parameters that are tuned, their moments, and the best parameters so far.

    Attributes:
        parameters: The parameters, by name.
        optimizer: The optimizer of these parameters.
        before: The loss of the held images before the first step.
        best: A copy of the parameters with the lowest loss, by name.
        best_loss: That loss.
        best_step: The number of steps after which it was measured.
        step: Number of steps so far.
        part: Number of images of a step that are taken at once. It depends on the memory, and the bits on it.
        lowered: Number of times that the rate was divided by four.
        start: Number of steps after which the present cycle of the rate began.
        compiled: Whether ``torch.compile`` has compiled the steps of this process.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Adam
    before: float
    best: dict[str, Tensor]
    best_loss: float
    best_step: int = 0
    step: int = 0
    part: int = 1
    lowered: int = 0
    start: int = 0
    compiled: bool = False

    @classmethod
    def new(cls, parameters: Mapping[str, nn.Parameter], loss: float) -> TuningState:
        """Return the state before the first step.

        Args:
            parameters: The parameters to tune, by name.
            loss: The loss of the held images.
        """
        pairs = zip(parameters.values(), _sizes(parameters), strict=True)
        groups = [{"params": [parameter], _SIZE: size} for parameter, size in pairs]
        return cls(parameters, Adam(groups, fused=_is_fused(parameters) or None), loss, _copies(parameters), loss)

    def step_by(self, rate: float) -> None:
        """Take a step of the optimizer.

        Args:
            rate: Learning rate as a share of the size of each parameter's values.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group[_SIZE]
        self.optimizer.step()
        self.step += 1

    def see(self, loss: float) -> None:
        """Keep a copy of the parameters if their loss is the lowest so far."""
        if loss < self.best_loss:  # false for NaN
            self.best = _copies(self.parameters)
            self.best_loss, self.best_step = loss, self.step

    def go_back(self) -> None:
        """Go back to the best parameters, forget the moments, and begin another cycle with a quarter of the rate."""
        self.restore_best()
        self.optimizer.state.clear()
        self.lowered, self.start = self.lowered + 1, self.step

    @torch.no_grad()
    def restore_best(self) -> None:
        """Give the parameters their best values."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.best[name])

    def save(self, path: Path, key: str) -> None:
        """Write the state to a file.

        Args:
            path: The file, written atomically.
            key: A hash of everything that decides the tuning.

        Raises:
            MmpError: if the file cannot be written.
        """
        numbers = [self.before, self.best_loss, self.best_step, self.step, self.part, self.lowered, self.start]
        tensors = {"key": _bytes(key), "numbers": torch.tensor(numbers, dtype=torch.float64, device="cpu")}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}/{name}"] = value
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        save_tensors(path, tensors)

    @torch.no_grad()
    def load(self, path: Path, key: str) -> bool:
        """Continue from a file of :meth:`save`, unless it is missing, damaged or of another tuning.

        Args:
            path: The file.
            key: The same hash as at :meth:`save`.

        Returns:
            Whether the state is the state of the file.
        """
        if not path.is_file():
            return False
        try:
            tensors = load_tensors(path)
        except MmpError as error:
            log.warning("the tuning begins again: %s", error)
            return False
        if not torch.equal(tensors["key"], _bytes(key)):
            log.info("the tuning begins again: %s belongs to other settings", path)
            return False
        self.before, self.best_loss, *whole = tensors["numbers"].tolist()
        self.best_step, self.step, self.part, self.lowered, self.start = map(int, whole)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            self.best[name].copy_(tensors[f"best/{name}"])
            if f"step/{name}" in tensors:  # a parameter without a gradient has no moments
                moments = {moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in _MOMENTS}
                step = tensors[f"step/{name}"].to(parameter.device if _is_fused(self.parameters) else "cpu")
                self.optimizer.state[parameter] = {"step": step, **moments}
        return True


def _is_fused(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Return whether one kernel takes the whole step of a parameter. Each parameter is a group with its own steps."""
    return all(parameter.device.type in _FUSED for parameter in parameters.values())


def _sizes(parameters: Mapping[str, nn.Parameter]) -> list[float]:
    """Return the root mean square of the values of each parameter that are not zero, at least `_SMALLEST` of median."""
    kept = [parameter.detach()[parameter != 0].double() for parameter in parameters.values()]
    sizes = [float(values.square().mean().sqrt()) if len(values) else 0.0 for values in kept]
    least = _SMALLEST * statistics.median([size for size in sizes if size] or [1.0])
    return [max(size, least) for size in sizes]


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _bytes(key: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(key)), dtype=torch.uint8, device="cpu")
