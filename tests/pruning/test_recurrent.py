"""Recurrent layers are scored, pruned and fine-tuned like others; their kept weights are not re-solved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mmp
from mmp.pruning.criteria import CRITERIA
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters

IMAGES, LABELS = torch.randn(24, 3, 8, 8), torch.arange(24) % 5
ANY = mmp.RangeTable("any", mmp.RuleTable("any", (), mmp.Range(0.3, 0.8)), constraints=mmp.Constraints(small_below=0))
RECURRENT = [f"rnn.weight_{kind}_l0{end}" for end in ("", "_reverse") for kind in ("ih", "hh")]


class Sequencer(nn.Module):
    """Convolution, recurrent layer over the positions, classifier."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.rnn = kind(8, 12, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.head(self.rnn(tokens)[0].mean(1))


def sequencer(kind: type[nn.RNNBase] = nn.LSTM) -> Sequencer:
    torch.manual_seed(0)
    return Sequencer(kind)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("signal", ["magnitude", "gradient", "product", "fisher", "obs", "obs_fisher"])
def test_every_signal_prunes_and_re_solving_says_that_it_leaves_them(kind: type[nn.RNNBase], signal: str) -> None:
    result = mmp.prune(sequencer(kind), 0.6, IMAGES, LABELS, signal=signal, ranges=ANY)
    weights = dict(result.model.named_parameters())
    for name in RECURRENT:
        pruned = ~result.masks[name]
        assert pruned.float().mean() > 0.5
        assert not weights[name][pruned].any()
    status = {report.name: report.status for report in result.reports}
    assert {name for name, text in status.items() if kind.__name__ in text} == {*RECURRENT}
    assert {status["conv.weight"], status["head.weight"]} == {"solved"}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_them(criterion: str) -> None:
    result = mmp.prune(sequencer(), 0.6, IMAGES, LABELS, criterion=criterion, reconstruct="none")
    assert result.sparsity == pytest.approx(0.6, abs=1e-3)
    assert sum(result.masks.pruned[name] for name in RECURRENT) > 0


def test_masks_hold_while_they_train() -> None:
    result = mmp.prune(sequencer(), 0.6, ranges=ANY)
    model = result.model
    enforcer = mmp.MaskEnforcer(prunable_parameters(model, prunable_layers(model)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    enforcer.set(result.masks, [optimizer])
    enforcer.attach(optimizer)
    for _ in range(3):
        cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    enforcer.check()
    assert not model.rnn.weight_hh_l0[~result.masks["rnn.weight_hh_l0"]].any()


@pytest.mark.parametrize(("kind", "enabled"), [(nn.LSTM, False), (None, True)])
def test_gradients_of_recurrent_layers_are_computed_without_cudnn(kind: type[nn.RNNBase] | None, enabled: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)) if kind is None else sequencer(kind)
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    parameters = prunable_parameters(model, prunable_layers(model))
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = True
    try:
        mmp.collect(model, parameters, [(IMAGES, LABELS)], cross_entropy, ["gradient", "hessian_gradient"])
        assert {*seen} == {enabled}
        assert torch.backends.cudnn.enabled
        with pytest.raises(mmp.MmpError):
            mmp.collect(model, parameters, [], cross_entropy, ["gradient"])
        assert torch.backends.cudnn.enabled
    finally:
        torch.backends.cudnn.enabled = before
