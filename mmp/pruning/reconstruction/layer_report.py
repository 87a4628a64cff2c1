"""What reconstruction says of a layer, in results and in the reports made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """What reconstruction did to one layer.

    Attributes:
        name: The weight's name.
        kept: Number of weights that the mask keeps.
        before: Output error of the masked layer, as a share of the variance of the dense output.
        after: The same, of the layer as it is left.
        status: ``solved``, or why the layer was left as it was.
        seconds: Time spent on it.
    """

    name: str
    kept: int
    before: float | None
    after: float | None
    status: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for ``result.json``."""
        return asdict(self)
