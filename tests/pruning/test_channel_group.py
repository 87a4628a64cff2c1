"""Groups of channels have names that tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmp import channel_groups


class Split(nn.Module):
    """A convolution whose outputs are divided between two others, as in Res2Net."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3)
        self.a, self.b = nn.Conv2d(4, 8, 3), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.first(x)).split((4, 6), dim=1)
        return self.head(F.relu(self.a(one) + self.b(other)).mean((2, 3)))


def test_groups_with_the_same_first_weight_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    groups = channel_groups(Split(), torch.randn(1, 3, 8, 8))
    assert [(group.name, len(group)) for group in groups] == [
        ("first.weight", 4),
        ("first.weight[4]", 6),
        ("a.weight", 8),
    ]
    assert [group.writer.name for group in groups] == ["first.weight", "first.weight", "a.weight"]
