"""The report on one layer's reconstruction, in results and in the tables made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """The report on one layer's reconstruction.

    Attributes:
        name: The weight's name.
        kept: Number of weights that the mask keeps.
        before: Mean squared error of the masked layer's output, as a share of the variance of the dense output; None
            if it was not measured, or if the dense output does not vary, as in a linear layer on a single image.
        after: The same error after reconstruction.
        status: ``solved``, or the reason why the layer stays as masked.
        seconds: Time spent on the layer.
    """

    name: str
    kept: int
    before: float | None
    after: float | None
    status: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for ``result.json``."""
        return asdict(self)
