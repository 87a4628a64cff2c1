"""The masking callback with whole channels: schedules, zeros after every step, resumed runs, and mistakes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import short_training
import torch
from pytorch_lightning.callbacks import Callback
from short_training import Crash, Watch, checkpoints, fit
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mmp
from callbacks.pruning import MaskPruning
from mmp.errors import MmpError
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.masks import Masks, check_zeros
from mmp.pruning.patterns import Channels
from mmp.pruning.schedules import Cubic, OneShot, Stepwise
from mmp.pruning.structure import masks_at

pytestmark = pytest.mark.slow

SPARSITY = 0.75
IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 48, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 10),
    )


@pytest.fixture(scope="module")
def digits() -> TensorDataset:
    return short_training.digits()


def channels_of(model: nn.Module) -> tuple[WholeChannels, dict[str, Tensor]]:
    """Return the channels of a model, and the scores of their sets by magnitude."""
    found = WholeChannels.of(model, IMAGE, Channels(8))
    return found, found.score(mmp.Magnitude(), mmp.prunable_parameters(model, found.weights), {})


def pruning_of(model: nn.Module, schedule: Any) -> MaskPruning:
    found, scores = channels_of(model)
    return MaskPruning(found.weights, scores, dict.fromkeys(scores, SPARSITY), schedule, found)


class Epochs(Callback):
    """Records the masks of each epoch."""

    def __init__(self, pruning: MaskPruning) -> None:
        self.pruning = pruning
        self.masks: list[Masks | None] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.masks.append(self.pruning.masks)


def kept(masks: Masks) -> list[int]:
    """Return how many channels of the two convolutions are read."""
    return [int(masks["3.weight"].any(0).any(1).any(1).sum()), int(masks["7.weight"].any(0).sum()) // 4]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (OneShot(0), [[8, 16]] * 4),
        (Stepwise([1, 3], [0.5, 1.0]), [None, [24, 32], [24, 32], [8, 16]]),
        (Cubic(0, 2), [[16, 24], [16, 16], [8, 16], [8, 16]]),
    ],
    ids=["at once", "stepwise", "cubic"],
)
def test_a_schedule_prunes_whole_multiples_of_channels(
    schedule: Any, expected: list[list[int] | None], digits: TensorDataset, tmp_path: Path
) -> None:
    model = network()
    found, scores = channels_of(model)
    pruning = pruning_of(model, schedule)
    watch, epochs = Watch(pruning), Epochs(pruning)
    fit(model, digits, [pruning, watch, epochs], tmp_path, recipe={"optimizer": "sgd", "weight_decay": 0.5})

    assert watch.revived == 0
    assert [masks and kept(masks) for masks in epochs.masks] == expected
    applied = [masks for masks in epochs.masks if masks is not None]
    assert all(later.contains(earlier) for earlier, later in itertools.pairwise(applied))
    final = masks_at(found, scores, dict.fromkeys(scores, SPARSITY))
    assert applied[-1] == final
    state = model.state_dict()
    check_zeros(state, final)
    assert all(((state[name] != 0) == mask).all() for name, mask in final.items())


def test_a_trained_network_loses_the_channels_of_its_masks(digits: TensorDataset, tmp_path: Path) -> None:
    model = network()
    fit(model, digits, [pruning_of(model, Cubic(0, 2))], tmp_path)
    images = digits.tensors[0]
    smaller, removal = mmp.shrink(model, images)
    assert (smaller[0].out_channels, smaller[3].in_channels, smaller[3].out_channels) == (8, 8, 16)
    assert smaller[7].in_features == 64
    assert not removal.kept
    torch.testing.assert_close(smaller(images), model.eval()(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("crash_in", [1, 2])
@pytest.mark.parametrize("schedule", [Cubic(0, 2), Stepwise([1, 3], [0.5, 1.0])], ids=["cubic", "stepwise"])
def test_an_interrupted_run_ends_with_the_same_bits(
    schedule: Any, crash_in: int, digits: TensorDataset, tmp_path: Path
) -> None:
    whole = network()
    fit(whole, digits, [pruning_of(whole, schedule), *checkpoints(tmp_path / "a")], tmp_path / "a")

    folder = tmp_path / "b"
    broken = network()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, digits, [pruning_of(broken, schedule), *checkpoints(folder), Crash(crash_in)], folder)

    resumed = network()
    callbacks = [pruning_of(resumed, schedule), *checkpoints(folder)]
    fit(resumed, digits, callbacks, folder, ckpt_path=folder / "last.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_masks_of_other_scores_are_refused_on_resume(digits: TensorDataset, tmp_path: Path) -> None:
    model = network()
    fit(model, digits, [pruning_of(model, OneShot(0)), *checkpoints(tmp_path)], tmp_path, epochs=1)
    found, scores = channels_of(network())
    opposite = {name: -score for name, score in scores.items()}
    other = MaskPruning(found.weights, opposite, dict.fromkeys(scores, SPARSITY), OneShot(0), found)
    with pytest.raises(MmpError, match=r"made from other scores; start again with force=true"):
        fit(network(), digits, [other], tmp_path, epochs=2, ckpt_path=tmp_path / "last.ckpt")


def test_the_channels_of_another_model_are_refused() -> None:
    found, scores = channels_of(network())
    other = mmp.prunable_layers(network(40))
    with pytest.raises(MmpError, match=r"'0.weight' has the shape \(32, 1, 3, 3\) there, but this model has .*\(40"):
        MaskPruning(other, scores, dict.fromkeys(scores, SPARSITY), OneShot(0), found)


def test_scores_of_weights_are_refused_before_a_weight_changes(digits: TensorDataset, tmp_path: Path) -> None:
    model = network()
    found, scores = channels_of(model)
    weights = mmp.prunable_parameters(model, found.weights)
    single = {name: weights[name].detach().abs() for name in scores}
    pruning = MaskPruning(found.weights, single, dict.fromkeys(scores, SPARSITY), OneShot(0), found)
    with pytest.raises(MmpError, match=r"scores of the shape \(32, 1, 3, 3\) for the 32 sets of '0.weight'; each set"):
        fit(model, digits, [pruning], tmp_path, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))
