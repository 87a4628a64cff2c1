"""The report on the joint tuning of a network, in results and in the tables made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TUNED = "tuned"


@dataclass(frozen=True)
class JointReport:
    """The report on the joint tuning of a network.

    The losses are those of the held images, which are not tuned on: the mean error of the blocks' outputs, as a share
    of the variance of the dense outputs, and the divergence of the class probabilities times its weight.

    Attributes:
        status: ``tuned``, or the reason why the network stays as it was.
        before: The loss before tuning.
        after: The loss afterwards; ``before`` if the network stays as it was.
        best_step: The step at which the loss was lowest, whose weights the network has; 0 if it stays as it was.
        steps: Number of steps that were taken.
        blocks: Number of blocks whose outputs were compared.
        images: Number of images that were tuned on.
        held: Number of images that were held out.
        seconds: Time spent, without the time before an interruption.
        compiled: Whether ``torch.compile`` has compiled the steps, where the settings ask for it.
    """

    status: str
    before: float
    after: float
    best_step: int
    steps: int
    blocks: int
    images: int
    held: int
    seconds: float
    compiled: bool = False

    def describe(self) -> str:
        """Return the report in one line."""
        if self.status != TUNED:
            return f"Not tuned together, since {self.status}."
        loss = f"from {self.before:.4g} to {self.after:.4g}"
        return f"Tuned together: loss {loss} on {self.held} held images, after {self.best_step} of {self.steps} steps."

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for ``result.json``."""
        return asdict(self)
