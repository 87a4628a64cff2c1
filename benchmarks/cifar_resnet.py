"""The ResNets of CIFAR-10 (He et al. 2015, arXiv 1512.03385, section 4.2), as the public checkpoints store them.

timm has only ResNets for larger images. The checkpoints differ in two things: how a shortcut widens, and the name of
the classifier.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions with a shortcut around them.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        projection: Whether a shortcut to more channels is a convolution; if not, it takes every second pixel and adds
            channels of zeros on both sides.
    """

    def __init__(self, inputs: int, outputs: int, projection: bool) -> None:
        super().__init__()
        self.stride, self.added = (1 if inputs == outputs else 2), outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if self.added and projection:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, self.stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.added:
            side = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.added - side))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """A ResNet for images of 32x32 pixels.

    Args:
        depth: Number of layers with weights on the longest path: 20, 32, 44, 56 or 110.
        projection: Whether the two widening shortcuts are convolutions.
        classifier: Name of the classifier.
        num_classes: Number of classes.
    """

    def __init__(self, depth: int = 20, projection: bool = True, classifier: str = "fc", num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = stage(16, 16, blocks, projection)
        self.layer2 = stage(16, 32, blocks, projection)
        self.layer3 = stage(32, 64, blocks, projection)
        self.classifier = classifier
        self.add_module(classifier, nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, classes), of images (B, 3, 32, 32)."""
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(x)).mean((2, 3))
        logits: Tensor = self.get_submodule(self.classifier)(x)
        return logits


def stage(inputs: int, outputs: int, blocks: int, projection: bool) -> nn.Sequential:
    """Return the blocks of a stage; the first one widens and halves the image, if the widths differ."""
    widths = [inputs] + [outputs] * blocks
    return nn.Sequential(*(Block(*pair, projection) for pair in pairwise(widths)))
