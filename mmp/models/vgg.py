"""VGG-11 for small images: the first model of the paper, registered with timm.

timm's own ``vgg11_bn`` is made for 224x224 images: 129 million parameters, most of them in a first classifier layer
that reads 7x7 positions. On 32x32 images the last feature map has one position, and the 512-4096-4096-classes
classifier leaves 28.1 million parameters (docs/method.md).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

_WIDTHS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")  # configuration A; M is max pooling


class Vgg11Small(nn.Module):
    """VGG-11 with batch norm (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration A) for 32x32 images.

    Keys of ``features`` are the same as in ``vgg11_bn`` of torchvision and timm. The feature map of a larger image is
    averaged to one position before the classifier.

    Args:
        num_classes: Number of classes; with 0 there is no last layer.
        in_chans: Number of channels of the images.
        drop_rate: Dropout probability in the classifier.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, 512, 4096
        self.feature_info: list[dict[str, Any]] = []
        layers: list[nn.Module] = []
        channels, reduction = in_chans, 1
        for width in _WIDTHS:
            if isinstance(width, str):
                self.feature_info.append(
                    {"num_chs": channels, "reduction": reduction, "module": f"features.{len(layers) - 1}"}
                )
                layers.append(nn.MaxPool2d(2))
                reduction *= 2
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(512, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(4096, num_classes) if num_classes else nn.Identity(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.classifier[-1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002
        """Replace the last layer."""
        self.num_classes = num_classes
        self.classifier[-1] = nn.Linear(4096, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map (B, 512, H / 32, W / 32) of images (B, C, H, W)."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, classes), or with ``pre_logits`` the input of the last layer (B, 4096)."""
        flat = torch.flatten(self.pool(features), 1)
        return self.classifier[:-1](flat) if pre_logits else self.classifier(flat)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))


default_cfgs = generate_default_cfgs(
    {
        "vgg11_bn_small.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (1, 1),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.4914, 0.4822, 0.4465),  # CIFAR-10's training images
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "features.0",
            "classifier": "classifier.6",
        }
    }
)


@register_model
def vgg11_bn_small(pretrained: bool = False, **kwargs: Any) -> Vgg11Small:
    """VGG-11 with batch norm for 32x32 images, 28.1 million parameters with ten classes."""
    return build_model_with_cfg(Vgg11Small, "vgg11_bn_small", pretrained, **kwargs)
