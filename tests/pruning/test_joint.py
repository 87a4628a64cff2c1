"""Joint reconstruction: what it lowers, what it leaves, and that an interruption changes no bit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import Masks, check_zeros, make_masks
from mmp.pruning.reconstruction import joint, tuning_state
from mmp.pruning.reconstruction.imitation import Imitation, outputs_of
from mmp.pruning.reconstruction.joint import Loss, Tuning, reconstruct_jointly
from mmp.pruning.reconstruction.joint_report import JointReport
from mmp.pruning.reconstruction.reconstruct import reconstruct
from mmp.pruning.reconstruction.repeatable import repeatable
from mmp.pruning.reconstruction.tuning_images import TuningImages, divided, varied
from mmp.pruning.reconstruction.tuning_state import TuningState
from mmp.pruning.signals import Magnitude, score

QUICK = Tuning(steps=40, learning_rate=0.03, batch_size=32)
IMAGES = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += x
        return self.act(y)


def dense() -> nn.Module:
    """Return a network with two residual blocks, in-place sums, and norms with statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    model.train()
    for _ in range(20):
        model(IMAGES)
    return model.eval()


def masks_of(model: nn.Module, sparsity: float) -> Masks:
    layers = prunable_layers(model)
    scores = score(Magnitude(), prunable_parameters(model, layers), {})
    return make_masks(scores, dict.fromkeys(scores, sparsity))


def solved(model: nn.Module, masks: Masks, images: Tensor = IMAGES) -> nn.Module:
    """Return a copy of a dense network that is pruned and re-solved layer by layer."""
    pruned = copy.deepcopy(model)
    reconstruct(pruned, masks, [images])
    return pruned


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def errors(pruned: nn.Module, network: nn.Module) -> list[float]:
    """Return the squared errors of both blocks and of the logits."""
    with torch.no_grad():
        pairs = zip(*(outputs_of(one, ("3", "4"), IMAGES) for one in (pruned, network)), strict=True)
        return [float((a - b).square().mean()) for a, b in pairs]


@pytest.mark.slow
def test_tuning_brings_outputs_closer_under_exact_masks() -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    pruned = solved(network, masks)
    before, buffers = errors(pruned, network), {name: b.clone() for name, b in pruned.named_buffers()}
    untouched = copy.deepcopy(network)
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, QUICK)
    assert report.status == "tuned"
    assert report.after < 0.9 * report.before
    assert all(after < start for after, start in zip(errors(pruned, network)[:2], before, strict=False))
    assert (report.blocks, report.images, report.held, report.steps) == (2, 96, 32, 40)
    check_zeros(pruned.state_dict(), masks)
    weights = dict(pruned.named_parameters())
    assert not any(torch.signbit(weights[name][~mask]).any() for name, mask in masks.items())  # +0.0
    assert all(torch.equal(b, buffers[name]) for name, b in pruned.named_buffers())
    assert same(network, untouched)


@pytest.mark.slow
def test_steps_in_bfloat16_reach_the_same_loss_and_repeat_their_bits() -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    full, mixed, again = (solved(network, masks) for _ in range(3))
    coarse = replace(QUICK, precision="bf16-mixed")
    expected = reconstruct_jointly(full, masks, [IMAGES], network, QUICK)
    report, repeated = (reconstruct_jointly(one, masks, [IMAGES], network, coarse) for one in (mixed, again))
    assert report.before == expected.before  # losses are measured in single precision
    assert report.after == pytest.approx(expected.after, rel=0.05)
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert not same(mixed, full)
    assert same(mixed, again)
    assert repeated.after == report.after
    check_zeros(mixed.state_dict(), masks)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_steps_reach_the_same_loss_and_an_interruption_changes_no_bit(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = dense(), tmp_path / "joint.safetensors"
    masks = masks_of(network, 0.7)
    plain, whole, continued = (solved(network, masks) for _ in range(3))
    tuning = replace(QUICK, precision=precision)
    expected = reconstruct_jointly(plain, masks, [IMAGES], network, tuning)
    tuning = replace(tuning, compile=True)
    report = reconstruct_jointly(whole, masks, [IMAGES], network, tuning)
    with monkeypatch.context() as patch:
        stop_at(20, patch)
        with pytest.raises(StoppedError):
            reconstruct_jointly(copy.deepcopy(continued), masks, [IMAGES], network, tuning, checkpoint=file)
    reconstruct_jointly(continued, masks, [IMAGES], network, tuning, checkpoint=file)
    assert same(whole, continued)
    assert not same(whole, plain)  # so it was compiled
    assert report.before == expected.before
    assert report.after == pytest.approx(expected.after, rel=0.01)
    check_zeros(whole.state_dict(), masks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("InvalidCxxCompiler: No C++ compiler\nfound\nSearched: g++"),
            "InvalidCxxCompiler: No C++ compiler found\n",
        ),
        (AssertionError(), "which fails: AssertionError\n"),
    ],
)
def test_without_a_compiler_steps_are_taken_as_they_are(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    plain, pruned = (solved(network, masks) for _ in range(2))

    def fail(_loss: object, **_settings: object) -> Callable[..., Tensor]:
        def call(*_arguments: object) -> Tensor:
            raise error

        return call

    monkeypatch.setattr(torch, "compile", fail)
    expected = reconstruct_jointly(plain, masks, [IMAGES], network, QUICK)
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, replace(QUICK, compile=True))
    assert reason in caplog.text
    assert report.after == expected.after
    assert same(plain, pruned)


class Viewing(nn.Module):
    """A network that flattens by ``view``, which fails on feature maps with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(288, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        logits: Tensor = self.fc(y.view(y.size(0), -1))
        return logits


def test_a_network_that_needs_the_usual_order_in_memory_is_tuned() -> None:
    torch.manual_seed(0)
    network = Viewing().eval()
    masks = masks_of(network, 0.7)
    report = reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK)
    assert report.steps == QUICK.steps
    images = TuningImages.of([IMAGES], None, torch.device("cpu"))
    assert images.arranged_for(network).layout is torch.contiguous_format
    assert images.arranged_for(dense()).layout is torch.channels_last


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_autocast_of_the_caller_changes_no_bit(precision: str, enabled: bool) -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    alone, inside = solved(network, masks), solved(network, masks)
    tuning = replace(QUICK, precision=precision)
    expected = reconstruct_jointly(alone, masks, [IMAGES], network, tuning)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        report = reconstruct_jointly(inside, masks, [IMAGES], network, tuning)
    assert report.after == expected.after
    assert same(alone, inside)


@pytest.mark.slow
def test_the_weight_of_the_logits_decides_between_blocks_and_logits() -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    of_blocks, of_logits = solved(network, masks), solved(network, masks)
    reconstruct_jointly(of_blocks, masks, [IMAGES], network, replace(QUICK, logits=0.0))
    reconstruct_jointly(of_logits, masks, [IMAGES], network, replace(QUICK, logits=1e4))
    assert errors(of_logits, network)[2] < 0.5 * errors(of_blocks, network)[2]
    assert errors(of_logits, network)[1] > errors(of_blocks, network)[1]


@pytest.mark.slow
def test_kept_weights_biases_and_norms_change_and_nothing_else() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2)
    masks = masks_of(network, 0.5)
    pruned = solved(network, masks)
    pruned.blocks[0].attn.qkv.weight.requires_grad_(False)
    pruned.blocks[1].norm1.bias.requires_grad_(False)
    pruned.train()
    pruned.head.bias.grad = torch.ones_like(pruned.head.bias)
    before = copy.deepcopy(pruned.state_dict())
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, QUICK)
    assert report.status == "tuned"
    left = {name for name, value in pruned.state_dict().items() if torch.equal(value, before[name])}
    assert left == {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.norm1.bias"}
    frozen = {name for name, parameter in pruned.named_parameters() if not parameter.requires_grad}
    assert frozen == {"blocks.0.attn.qkv.weight", "blocks.1.norm1.bias"}
    assert pruned.training
    assert torch.equal(pruned.head.bias.grad, torch.ones(1000))
    assert pruned.blocks[0].mlp.fc1.weight.grad is None


@pytest.mark.slow
def test_a_checkpoint_of_another_algorithm_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, file = dense(), tmp_path / "joint.safetensors"
    masks = masks_of(network, 0.7)
    with monkeypatch.context() as patch:
        patch.setattr(joint, "_VERSION", 1)
        reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK, checkpoint=file)
    steps: list[int] = []
    taken = joint._Descent._step
    monkeypatch.setattr(joint._Descent, "_step", lambda *a: (steps.append(a[1].step), taken(*a)))
    reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK, checkpoint=file)
    assert steps[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e5, 1e30])
def test_a_harmful_tuning_leaves_every_bit_of_the_start(rate: float, caplog: pytest.LogCaptureFixture) -> None:
    network = dense()
    masks = masks_of(network, 0.5)
    pruned = solved(network, masks)
    start = copy.deepcopy(pruned)
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, Tuning(steps=20, learning_rate=rate))
    assert same(pruned, start)
    assert report.status != "tuned"
    assert (report.after, report.best_step) == (report.before, 0)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [r.getMessage() for r in warnings if "joint" in r.getMessage()] == [
        f"joint tuning leaves the weights as they were: {report.status}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [3.0, 50.0])
def test_a_rate_that_is_too_high_is_lowered_until_the_loss_falls(rate: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    network = dense()
    masks = masks_of(network, 0.7)
    pruned = solved(network, masks)
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, replace(QUICK, steps=80, learning_rate=rate))
    assert report.status == "tuned"
    assert report.after < 0.9 * report.before
    assert "back to the best weights at a lower rate" in caplog.text
    check_zeros(pruned.state_dict(), masks)


@pytest.mark.slow
@pytest.mark.parametrize("beyond", [4.5, float("nan")])
def test_a_tuning_that_goes_back_begins_a_cycle_with_a_quarter_of_the_rate(
    beyond: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([4.0, 3.0, beyond, 2.0, 5.0])  # at the last step, nothing would follow
    rates: list[float] = []
    taken = TuningState.step_by

    def step_by(self: TuningState, rate: float) -> None:
        rates.append(rate)
        taken(self, rate)

    monkeypatch.setattr(TuningState, "step_by", step_by)
    monkeypatch.setattr(joint, "_MEASUREMENTS", 4)
    monkeypatch.setattr(joint._Descent, "_held_loss", lambda *_: next(losses))
    network = dense()
    masks = masks_of(network, 0.5)
    report = reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK)
    assert (report.after, report.best_step, report.steps) == (2.0, 30, 40)
    whole = [QUICK.learning_rate * joint._rate(step / 40) for step in range(20)]
    quarter = [0.25 * QUICK.learning_rate * joint._rate(step / 20) for step in range(20)]
    assert rates == [*whole, *quarter]


@pytest.mark.slow
def test_the_best_weights_on_held_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 3.0, 1.0, 2.0, 2.5])
    kept: list[dict[str, Tensor]] = []
    seen = TuningState.see

    def see(self: TuningState, loss: float) -> None:
        kept.append({name: parameter.detach().clone() for name, parameter in self.parameters.items()})
        seen(self, loss)

    monkeypatch.setattr(TuningState, "see", see)
    monkeypatch.setattr(joint, "_MEASUREMENTS", 4)
    monkeypatch.setattr(joint._Descent, "_held_loss", lambda *_: next(losses))
    network = dense()
    masks = masks_of(network, 0.5)
    pruned = solved(network, masks)
    report = reconstruct_jointly(pruned, masks, [IMAGES], network, QUICK)
    assert (report.before, report.after, report.best_step) == (4.0, 1.0, 20)
    assert all(torch.equal(parameter, kept[1][name]) for name, parameter in pruned.named_parameters())


class StoppedError(Exception):
    """Stands for an interruption."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise at one step of a tuning."""
    whole = joint._Descent._step

    def stopping(self: joint._Descent, state: TuningState, loss_of: Loss) -> None:
        if state.step == step:
            raise StoppedError
        whole(self, state, loss_of)

    monkeypatch.setattr(joint._Descent, "_step", stopping)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])  # as on a GPU
@pytest.mark.parametrize("rate", [QUICK.learning_rate, 3.0])  # with the second, the tuning goes back
def test_a_resumed_tuning_has_the_same_bits_as_a_whole_one(
    rate: float, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_state, "_FUSED", ("cpu",) if fused else ())
    network, file, tuning = dense(), tmp_path / "joint.safetensors", replace(QUICK, learning_rate=rate)
    masks = masks_of(network, 0.7)
    first, second, third = (solved(network, masks) for _ in range(3))
    whole = reconstruct_jointly(first, masks, [IMAGES], network, tuning)
    torch.manual_seed(1234)  # the global generator is not used
    with monkeypatch.context() as patch:
        stop_at(30, patch)
        with pytest.raises(StoppedError):
            reconstruct_jointly(second, masks, [IMAGES], network, tuning, checkpoint=file)
    second = solved(network, masks)
    steps: list[int] = []
    taken = joint._Descent._step
    monkeypatch.setattr(joint._Descent, "_step", lambda *a: (steps.append(a[1].step), taken(*a)))
    resumed = reconstruct_jointly(second, masks, [IMAGES], network, tuning, checkpoint=file)
    assert steps[0] == 28  # the last of ten measurements before the interruption
    assert same(first, second)
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)
    steps.clear()
    again = reconstruct_jointly(third, masks, [IMAGES], network, tuning, checkpoint=file)
    assert not steps
    assert same(first, third)
    assert again.after == whole.after


@pytest.mark.slow
def test_another_memory_limit_continues_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, file = dense(), tmp_path / "joint.safetensors"
    masks = masks_of(network, 0.7)
    first, second = solved(network, masks), solved(network, masks)
    reconstruct_jointly(first, masks, [IMAGES], network, QUICK)
    with monkeypatch.context() as patch:
        stop_at(30, patch)
        with pytest.raises(StoppedError):
            reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK, checkpoint=file)
    monkeypatch.setattr(joint._Descent, "_part", lambda _: 3)  # images at once
    reconstruct_jointly(second, masks, [IMAGES], network, QUICK, checkpoint=file)
    assert same(first, second)


def test_another_division_of_the_same_images_is_another_tuning() -> None:
    divisions = [TuningImages(IMAGES[n:], IMAGES[:n], torch.device("cpu")).digest() for n in (32, 40)]
    assert divisions[0] != divisions[1]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["settings", "masks", "images", "damage"])
def test_a_checkpoint_of_another_tuning_is_not_continued(change: str, tmp_path: Path) -> None:
    network, file = dense(), tmp_path / "joint.safetensors"
    masks = masks_of(network, 0.7)
    reconstruct_jointly(solved(network, masks), masks, [IMAGES], network, QUICK, checkpoint=file)
    other, images = (masks_of(network, 0.6) if change == "masks" else masks), IMAGES
    tuning = replace(QUICK, logits=1.0) if change == "settings" else QUICK
    if change == "images":
        images = IMAGES.flip(0)
    if change == "damage":
        file.write_bytes(file.read_bytes()[:-100])
    expected, found = solved(network, other), solved(network, other)
    reconstruct_jointly(expected, other, [images], network, tuning)
    reconstruct_jointly(found, other, [images], network, tuning, checkpoint=file)
    assert same(expected, found)


def fused_attention() -> bool:
    """Return whether attention may be computed by a fused kernel."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()


def test_kernels_repeat_their_bits_while_a_network_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    network, cudnn, seen = dense(), torch.backends.cudnn, set[tuple[bool, ...]]()
    masks = masks_of(network, 0.7)
    pruned = solved(network, masks)
    monkeypatch.setattr(cudnn, "benchmark", True)
    pruned[0].register_forward_hook(lambda *_: seen.add((cudnn.deterministic, cudnn.benchmark, fused_attention())))
    reconstruct_jointly(pruned, masks, [IMAGES], network, Tuning(steps=1))
    assert seen == {(True, False, True)}
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


def test_attention_is_not_fused_on_a_gpu() -> None:
    with repeatable(torch.device("cuda")):
        assert not fused_attention()
    with repeatable(torch.device("cpu")):
        assert fused_attention()
    assert fused_attention()


@pytest.mark.slow
def test_large_batches_are_taken_in_parts_with_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    network = dense()
    masks = masks_of(network, 0.7)
    sizes: list[int] = []
    loss = Imitation.loss
    monkeypatch.setattr(Imitation, "loss", lambda self, *a: (sizes.append(len(a[1])), loss(self, *a))[1])

    def tuned(most: int, steps: int = 5) -> tuple[nn.Module, JointReport]:
        monkeypatch.setattr(joint, "_MOST_SAVED", most)
        sizes.clear()
        pruned = solved(network, masks)
        return pruned, reconstruct_jointly(pruned, masks, [IMAGES], network, replace(QUICK, steps=steps))

    whole, report = tuned(2**30)
    assert max(sizes) == 32
    parts, in_parts = tuned(2**17)
    assert 1 < max(sizes) < 16
    assert in_parts.after == pytest.approx(report.after, rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    tuned(1, steps=1)
    assert max(sizes) == 1
    monkeypatch.setenv("MMP_MEMORY", str(2**20))  # an eighth of which is as much as above
    in_little_memory, _ = tuned(2**30)
    assert 1 < max(sizes) < 16
    state = parts.state_dict()
    assert all(torch.equal(state[name], value) for name, value in in_little_memory.state_dict().items())


def test_every_image_is_tuned_on_or_held_out() -> None:
    images = TuningImages.of([IMAGES[:100], (IMAGES[100:], torch.zeros(28))], None, torch.device("cpu"))
    assert (len(images.tuned), len(images.held)) == (96, 32)
    together = torch.stack([*images.tuned, *images.held])
    assert torch.equal(together.flatten(1).sum(1).sort().values, IMAGES.flatten(1).sum(1).sort().values)
    rows = TuningImages.of([IMAGES.flatten(1)[:96]], [IMAGES.flatten(1)[96:]], torch.device("cpu"))  # are not varied
    turn = torch.cat([rows.batch(step, 32) for step in range(3)])
    assert torch.equal(turn.sum(1).sort().values, torch.stack(list(rows.tuned)).sum(1).sort().values)
    assert not torch.equal(rows.batch(0, 32), rows.batch(3, 32))  # another order in the next turn
    assert len(images.batch(0, 1000)) == 96
    assert len(divided([*IMAGES.repeat(4, 1, 1, 1)])[1]) == 51
    stated = TuningImages.of([IMAGES[:100]], [IMAGES[100:]], torch.device("cpu"))
    assert torch.equal(torch.stack(list(stated.tuned)), IMAGES[:100])
    assert torch.equal(torch.cat([*stated.held_batches(10)]), IMAGES[100:])


def test_varied_images_are_mirrored_by_half_and_show_a_rectangle_of_their_neighbour() -> None:
    images = torch.arange(400.0).view(400, 1, 1, 1) + torch.linspace(0, 0.9, 10)  # the tenth tells the column
    images = images.expand(400, 1, 6, 10)
    seen = varied(images, torch.Generator().manual_seed(0))
    assert torch.equal(seen, varied(images, torch.Generator().manual_seed(0)))
    owner = seen.floor().squeeze(1).round()
    of_neighbour = owner == (torch.arange(400).view(400, 1, 1) - 1) % 400
    assert (of_neighbour | (owner == torch.arange(400).view(400, 1, 1))).all()
    sides = [of_neighbour.any(2).sum(1), of_neighbour.any(1).sum(1)]
    assert torch.equal(of_neighbour.sum((1, 2)), sides[0] * sides[1])  # a rectangle
    assert [int(side.max()) for side in sides] == [6, 10]
    assert 0.18 < of_neighbour.float().mean() < 0.24  # 0.49 of the rows times 0.43 of the columns
    columns = (seen - seen.floor()).squeeze(1)
    own = torch.stack(
        [row[~there] for row, there in zip(columns[:, 0, :1], of_neighbour[:, 0, :1], strict=True) if not there.any()]
    )
    assert 0.4 < (own > 0.5).float().mean() < 0.6  # mirrored


def test_the_rate_is_a_share_of_the_size_of_the_kept_values() -> None:
    sizes = {"large": torch.tensor([0.0, 20.0, -20.0]), "small": torch.tensor([2.0]), "zeros": torch.zeros(3)}
    parameters = {name: nn.Parameter(value.clone()) for name, value in sizes.items()}
    state = TuningState.new(parameters, 1.0)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.step_by(0.01)
    moved = {name: float((sizes[name] - parameter.detach()).max()) for name, parameter in parameters.items()}
    assert moved == pytest.approx({"large": 0.2, "small": 0.02, "zeros": 0.01 * 1.1}, rel=1e-4)  # a tenth of the median


@pytest.mark.slow
def test_blocks_are_stated_or_found_and_each_call_counts() -> None:
    network = dense()
    images = IMAGES[:4]
    with torch.no_grad():
        *blocks, logits = outputs_of(network, ("3", "4"), images)
        assert torch.equal(logits, network(images))
        assert [block.shape for block in blocks] == [(4, 8, 8, 8)] * 2
        twice = nn.Sequential(network[3], network[3])
        assert len(outputs_of(twice, ("0",), torch.randn(2, 8, 8, 8))) == 3
    pruned = solved(network, masks_of(network, 0.5))
    report = reconstruct_jointly(pruned, masks_of(network, 0.5), [IMAGES], network, QUICK, blocks=["4"])
    assert report.blocks == 1


def test_the_loss_is_a_share_of_the_dense_variance() -> None:
    network = dense()
    imitation = Imitation.of(network, ("3", "4"), 0.0, [IMAGES[:64], IMAGES[64:]])
    with torch.no_grad():
        assert float(imitation.loss(network, IMAGES)) == 0.0
        *blocks, _ = outputs_of(network, ("3", "4"), IMAGES)
        assert list(imitation.variances[:2]) == pytest.approx([float(b.var(correction=0)) for b in blocks], rel=1e-5)
        constant = copy.deepcopy(network)
        constant[4] = nn.Sequential(nn.Flatten(), nn.Linear(512, 512), nn.Unflatten(1, (8, 8, 8)))
        constant[4][1].weight.zero_()
        constant[4][1].bias.fill_(float(blocks[1].mean()))
        share = float(imitation.loss(constant, IMAGES))
    assert share == pytest.approx(0.5, rel=1e-3)  # 1 at the second block, 0 at the first, whose output is the dense one


def test_an_output_that_never_changes_has_no_share() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
    pruned = solved(network, masks_of(network, 0.5))
    report = reconstruct_jointly(pruned, masks_of(network, 0.5), [IMAGES], network, QUICK)
    assert report.before >= 0  # not NaN


def test_what_cannot_be_tuned_is_refused_in_one_line() -> None:
    network = dense()
    masks = masks_of(network, 0.5)
    pruned = solved(network, masks)

    def tune(**changes: object) -> None:
        arguments = {"model": pruned, "masks": masks, "batches": [IMAGES], "dense": network, "tuning": QUICK} | changes
        reconstruct_jointly(**arguments)  # type: ignore[arg-type]

    with pytest.raises(MmpError, match=r"at least 64 images.*there are 63"):
        tune(batches=[IMAGES[:63]])
    with pytest.raises(MmpError, match="one of the two is empty"):
        tune(held=[])
    with pytest.raises(MmpError, match=r"images of one size.*resize"):
        tune(batches=[IMAGES, IMAGES[:, :, :4]])
    with pytest.raises(MmpError, match=r"dense and model share '0\.weight'"):
        tune(dense=pruned)
    with pytest.raises(MmpError, match=r"dense is another network .* differ in '7\.weight'"):
        tune(dense=nn.Sequential(*list(dense())[:5], nn.Linear(8, 5)))
    with pytest.raises(MmpError, match=r"dense is on meta, but model is on cpu \('0\.weight'\)"):
        tune(dense=copy.deepcopy(network).to("meta"))
    with pytest.raises(MmpError, match="'nope' is no module"):
        tune(blocks=["nope"])
    with pytest.raises(MmpError, match="mask 'x' names no weight"):
        tune(masks=Masks({"x": torch.ones(1, dtype=torch.bool)}))
    with pytest.raises(MmpError, match="float16, too coarse"):
        tune(model=copy.deepcopy(pruned).half())
    with pytest.raises(MmpError, match="frozen"):
        tune(model=copy.deepcopy(pruned).requires_grad_(False))
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken[7].weight.fill_(torch.nan)
    with pytest.raises(MmpError, match="dense network are not finite"):
        tune(dense=broken)
    with torch.inference_mode(), pytest.raises(MmpError, match="inference_mode"):
        tune()
    with torch.no_grad():
        tune(tuning=Tuning(steps=1))
    for changes in ({"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"logits": -1.0}, {"logits": torch.nan}):
        ((name, _),) = changes.items()
        with pytest.raises(MmpError, match=rf"^{name}=.*must be "):
            Tuning(**changes)  # type: ignore[arg-type]
