"""The networks of the one-shot benchmark: their settings, and the pictures that each is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.imagenet_pictures import OnePictureEach
from mmp.config.schema import DataConfig
from mmp.data.loader import Split
from mmp.data.module import ImageData

# No training and no augmentation. Outputs of dense layers are computed again by every run, which takes less time than
# to read them from a file.
RUN = (
    "finetune=none", "data.augment=null", "data.workers=0", "reconstruct.cache_megabytes=0",
    "trainer.enable_progress_bar=false", "logger=none",
)  # fmt: skip

# 3,000 of the 50,000 training pictures calibrate, 5,000 validate. The rule for layers under 10,000 weights is off,
# because the baselines have no such rule and these networks have few larger layers. So many steps, in bfloat16 and
# compiled, take a ResNet-20 eleven minutes on the two threads of one core.
CIFAR10 = (
    "model=own", "model._target_=benchmarks.cifar_resnet.CifarResNet", "model.image_size=32", "data=cifar10",
    "data.calibration=0.06", "data.validation=0.1", "ranges.constraints.small_below=0",
    "reconstruct.tuning.steps=3200", "reconstruct.tuning.precision=bf16-mixed", "reconstruct.tuning.compile=true",
)  # fmt: skip
# A picture of 224 pixels takes 0.14 seconds of processor time in a step, so that these steps take a quarter of an hour.
# In bfloat16 they would take longer, since depthwise convolutions do.
IMAGENET = (
    "data=imagefolder", "data.classes=1000", "data.in_memory=true", "reconstruct.tuning.batch_size=32",
    "reconstruct.tuning.steps=200", "reconstruct.tuning.learning_rate=0.0005",
)  # fmt: skip

HALF = (0.5, 0.5, 0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WITHOUT = {"projection": False, "classifier": "linear"}


@dataclass(frozen=True)
class Network:
    """A network that others trained.

    Attributes:
        settings: The settings of a run that name the network and its pictures.
        images: Numbers of calibration pictures that can be measured; the last one is the number for the tables.
        sparsities: Shares of the prunable weights to remove.
        read: Reads the pictures, split by a seed.
    """

    settings: tuple[str, ...]
    images: tuple[int, ...] = (128, 256, 512, 1024, 3000)
    sparsities: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    read: Callable[[DataConfig, int], ImageData] = ImageData

    def data(self, cfg: DataConfig, seed: int, images: int) -> ImageData:
        """Return the pictures, of which only the first ``images`` calibrate. The splits are the same for any number."""
        data = self.read(cfg, seed)
        split = data.calibration_dataloader().dataset
        assert isinstance(split, Split)
        split.indices = split.indices[:images]
        data.indices["calibration"] = data.indices["calibration"][:images]
        return data


def _resnet(arguments: Mapping[str, object], mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """Return a ResNet of CIFAR-10.

    Args:
        arguments: Arguments of :class:`benchmarks.cifar_resnet.CifarResNet`.
        mean: Mean of each channel of the pictures that it was trained with.
        std: Their standard deviation.
    """
    kwargs = (f"+model.kwargs.{key}={value}" for key, value in arguments.items())
    return Network((*CIFAR10, *kwargs, f"model.mean={list(mean)}", f"model.std={list(std)}"))


NETWORKS = {
    "resnet20": _resnet({"depth": 20}, HALF, HALF),  # the checkpoint of the papers, from Distiller
    "resnet20_zeros": _resnet({"depth": 20, **WITHOUT}, MEAN, STD),
    "resnet56_zeros": _resnet({"depth": 56, **WITHOUT}, MEAN, STD),
    "efficientnet_lite0": Network(
        ("model=timm", "model.name=tf_efficientnet_lite0", "ranges=mobilenet", *IMAGENET),
        (64, 128, 256),
        (0.5, 0.7),
        OnePictureEach,
    ),
}
