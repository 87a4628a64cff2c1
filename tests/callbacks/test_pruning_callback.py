"""The masking callback in short trainings: masks are applied on schedule, kept at zero, saved, resumed and removed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import short_training
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from short_training import Crash, Watch, checkpoints, fit
from torch import nn
from torch.utils.data import TensorDataset

from callbacks.pruning import ELEMENTWISE, MaskPruning
from callbacks.selection import CheckpointAtTarget, EarlyStoppingAtTarget
from mmp.errors import MmpError
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import check_zeros, make_masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.schedules import Cubic, OneShot, Stepwise
from mmp.pruning.topk import satisfies

pytestmark = pytest.mark.slow

SPARSITY = 0.75


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@pytest.fixture(scope="module")
def digits() -> TensorDataset:
    return short_training.digits()


def pruning_of(
    model: nn.Module, schedule: Any, sparsity: float = SPARSITY, pattern: Pattern = UNSTRUCTURED
) -> MaskPruning:
    layers = prunable_layers(model)
    scores = {name: p.detach().abs() for name, p in prunable_parameters(model, layers).items()}
    return MaskPruning(layers, scores, dict.fromkeys(scores, sparsity), schedule, pattern)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (OneShot(0), [1, 1, 1, 1]),
        (OneShot(2), [0, 0, 1, 1]),
        (Stepwise([1, 3], [0.5, 1.0]), [0, 0.5, 0.5, 1]),
        (Cubic(0, 2), [1 - (2 / 3) ** 3, 1 - (1 / 3) ** 3, 1, 1]),
    ],
    ids=["at once", "later", "stepwise", "cubic"],
)
def test_masks_are_applied_on_schedule(schedule: Any, expected: list[float], digits, tmp_path: Path) -> None:
    model = network()
    pruning = pruning_of(model, schedule)
    watch = Watch(pruning)
    fit(model, digits, [pruning, watch], tmp_path)
    assert watch.sparsities == pytest.approx([f * SPARSITY for f in expected], abs=0.01)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ({"optimizer": "sgd", "weight_decay": 0.5}, {}),
        ({"optimizer": "adamw", "weight_decay": 0.5}, {"gradient_clip_val": 0.1}),
        ({"optimizer": "nadamw"}, {"accumulate_grad_batches": 2}),
        ({"optimizer": "adamw"}, {"precision": "bf16-mixed"}),
        ({"optimizer": "lamb"}, {}),
    ],
    ids=["sgd with momentum and decay", "clipping", "accumulation", "bf16", "lamb"],
)
def test_pruned_weights_stay_zero_after_every_step(recipe, options, digits, tmp_path: Path) -> None:
    model = network()
    pruning = pruning_of(model, OneShot(1))
    watch = Watch(pruning)
    fit(model, digits, [pruning, watch], tmp_path, epochs=3, recipe=recipe, **options)
    assert watch.revived == 0
    kept = list(prunable_parameters(model, prunable_layers(model)).values())
    assert sum(int((p == 0).sum()) for p in kept) == sum(pruned_count(SPARSITY, p.numel()) for p in kept)


def test_the_optimizer_step_enforces_the_masks_for_any_gradients(digits, tmp_path: Path) -> None:
    class Noise(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            for parameter in pl_module.parameters():
                parameter.grad.fill_(1.0)

    model = network()
    pruning = pruning_of(model, OneShot(0))
    watch = Watch(pruning)
    fit(model, digits, [pruning, Noise(), watch], tmp_path, epochs=1)
    assert watch.revived == 0


def test_final_masks_are_exactly_those_made_from_the_scores(digits, tmp_path: Path) -> None:
    model = network()
    pruning = pruning_of(model, Cubic(0, 2))
    expected = make_masks(pruning._scores, pruning._configured)
    fit(model, digits, [pruning], tmp_path)
    state = model.state_dict()
    check_zeros(state, expected)
    assert all(((state[name] != 0) == mask).all() for name, mask in expected.items())


@pytest.mark.parametrize(("optimizer", "options"), [("adamw", {"gradient_clip_val": 1.0}), ("lamb", {}), ("muon", {})])
def test_gradient_norms_ignore_pruned_weights(optimizer: str, options: dict, digits, tmp_path: Path) -> None:
    class Norms(Callback):
        alive: float = 0.0

        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
            masks = pruning.masks or {}
            weights = dict(pl_module.model.named_parameters())
            for name, mask in masks.items():
                if weights[name].grad is not None:
                    self.alive = max(self.alive, float(weights[name].grad[~mask].abs().max()))

    model = network()
    pruning = pruning_of(model, OneShot(0))
    norms = Norms()
    fit(model, digits, [pruning, norms], tmp_path, epochs=1, recipe={"optimizer": optimizer}, **options)
    assert norms.alive == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"])
def test_elementwise_optimizers_ignore_gradients_of_pruned_weights(optimizer: str, digits, tmp_path: Path) -> None:
    class Noise(Callback):
        """Makes the gradients of pruned weights large."""

        def on_after_backward(self, trainer, pl_module) -> None:
            for name, parameter in prunable_parameters(pl_module.model, prunable_layers(pl_module.model)).items():
                parameter.grad.masked_fill_(~pruning.masks[name], 1e3)

    models = []
    for disturbed in ([], [Noise()]):
        models.append(network())
        pruning = pruning_of(models[-1], OneShot(0))
        trainer = fit(models[-1], digits, [pruning, *disturbed], tmp_path, epochs=1, recipe={"optimizer": optimizer})
        assert type(trainer.optimizers[0]) in ELEMENTWISE
    for left, right in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("text", ["2:4", "4x2"])
def test_a_gradual_schedule_ends_with_the_pattern(text: str, digits, tmp_path: Path) -> None:
    model, pattern = network(), Pattern.parse(text)
    pruning = pruning_of(model, Cubic(0, 2), pattern=pattern)
    watch = Watch(pruning)
    fit(model, digits, [pruning, watch], tmp_path)
    assert watch.revived == 0
    assert watch.sparsities == sorted(watch.sparsities)
    first, second, _ = prunable_parameters(model, prunable_layers(model)).values()
    assert not satisfies(first != 0, pattern)  # the first layer has only one input channel
    assert satisfies(second != 0, pattern)


@pytest.mark.parametrize(
    ("schedule", "pattern"),
    [(OneShot(0), "none"), (Cubic(0, 2), "none"), (Cubic(0, 2), "2:4")],
    ids=["at once", "cubic", "cubic to a pattern"],
)
@pytest.mark.parametrize("crash_in", [1, 2])
def test_an_interrupted_run_ends_with_the_same_bits(
    schedule, pattern: str, crash_in: int, digits, tmp_path: Path
) -> None:
    kind = Pattern.parse(pattern)
    whole = network()
    fit(whole, digits, [pruning_of(whole, schedule, pattern=kind), *checkpoints(tmp_path / "a")], tmp_path / "a")

    broken = network()
    pruning = pruning_of(broken, schedule, pattern=kind)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, digits, [pruning, *checkpoints(tmp_path / "b"), Crash(crash_in)], tmp_path / "b")

    resumed = network()
    fresh = pruning_of(resumed, schedule, pattern=kind)
    fit(
        resumed,
        digits,
        [fresh, *checkpoints(tmp_path / "b")],
        tmp_path / "b",
        ckpt_path=tmp_path / "b" / "last.ckpt",
    )
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_masks_of_the_checkpoint_take_precedence(digits, tmp_path: Path) -> None:
    model = network()
    fit(model, digits, [pruning_of(model, OneShot(0)), *checkpoints(tmp_path)], tmp_path, epochs=2)
    before = {n: p == 0 for n, p in prunable_parameters(model, prunable_layers(model)).items()}

    other = network()
    pruning = pruning_of(other, OneShot(0), sparsity=0.1)
    fit(other, digits, [pruning], tmp_path, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    after = prunable_parameters(other, prunable_layers(other))
    for name, pruned in before.items():
        assert torch.equal(after[name] == 0, pruned)


def test_a_resumed_schedule_ends_at_the_sparsities_of_the_checkpoint(digits, tmp_path: Path) -> None:
    model = network()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(model, digits, [pruning_of(model, Cubic(0, 3)), *checkpoints(tmp_path), Crash(1)], tmp_path)

    resumed = network()
    watch = Watch(pruning_of(resumed, Cubic(0, 3), sparsity=0.95))
    fit(resumed, digits, [watch.pruning, watch], tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert watch.sparsities[-1] == pytest.approx(SPARSITY, abs=0.01)


def test_the_next_fit_starts_without_state(digits, tmp_path: Path) -> None:
    model = network()
    pruning = pruning_of(model, OneShot(0))
    trainer = fit(model, digits, [pruning], tmp_path, epochs=1)
    assert pruning.masks is None
    assert not trainer.optimizers or not trainer.optimizers[0]._optimizer_step_post_hooks
    again = network()
    watch = Watch(pruning)
    fit(again, digits, [pruning, watch], tmp_path, epochs=2)
    assert watch.sparsities == pytest.approx([SPARSITY] * 2, abs=0.01)


def test_the_model_keeps_its_names_and_can_be_copied(digits, tmp_path: Path) -> None:
    model = network()
    names = list(model.state_dict())
    fit(model, digits, [pruning_of(model, OneShot(0))], tmp_path, epochs=1)
    assert list(copy.deepcopy(model).state_dict()) == names


def test_a_schedule_that_outlasts_the_training_is_refused(digits, tmp_path: Path) -> None:
    model = network()
    with pytest.raises(MmpError, match=r"final sparsity in epoch 5.*after 2 epochs"):
        fit(model, digits, [pruning_of(model, OneShot(5))], tmp_path, epochs=2)


def test_a_checkpoint_with_revived_weights_is_never_saved(digits, tmp_path: Path) -> None:
    class Vandal(Callback):
        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            with torch.no_grad():
                pl_module.model[0].weight.add_(1.0)

    model = network()
    with pytest.raises(MmpError, match=r"0\.weight.*not zero"):
        fit(model, digits, [pruning_of(model, OneShot(0)), Vandal(), *checkpoints(tmp_path)], tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))


def test_selection_and_patience_ignore_models_without_final_masks(digits, tmp_path: Path) -> None:
    class Rigged(Callback):
        """Logs a metric that falls with each epoch, as accuracy does while a schedule raises the sparsity."""

        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            pl_module.log("rigged", 1.0 - 0.1 * trainer.current_epoch)

    model = network()
    pruning = pruning_of(model, Stepwise([0, 3], [0.2, 1.0]))
    best = CheckpointAtTarget(tmp_path, filename="best", monitor="rigged", mode="max")
    stop = EarlyStoppingAtTarget("rigged", mode="max", patience=1)
    trainer = fit(model, digits, [Rigged(), pruning, best, stop], tmp_path, epochs=6)
    assert trainer.current_epoch == 5, "patience must start with the final masks"
    state = torch.load(best.best_model_path, weights_only=True)
    chosen = state["callbacks"]["MaskPruning"]["masks"]
    assert state["epoch"] == 3
    check_zeros(
        {n.removeprefix("model."): v for n, v in state["state_dict"].items()},
        make_masks(pruning._scores, pruning._configured),
    )
    assert chosen


class Frozen(EarlyStoppingAtTarget):
    """Early stopping that sees no improvement after the first epoch."""

    def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str | None]:
        return super()._evaluate_stopping_criteria(torch.tensor(0.5))


def test_patience_of_0_stops_after_the_first_epoch_without_progress_and_not_before_the_training(
    digits, tmp_path: Path
) -> None:
    model = network()
    stop = Frozen(monitor="val/accuracy", mode="max", patience=0)
    assert fit(model, digits, [pruning_of(model, OneShot(0)), stop], tmp_path, epochs=6).current_epoch == 2


def test_a_run_that_had_stopped_early_stops_again_when_resumed(digits, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        last = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        return [Frozen(monitor="val/accuracy", mode="max", patience=2), last]

    first = network()
    assert fit(first, digits, [pruning_of(first, OneShot(0)), *callbacks()], tmp_path, epochs=8).current_epoch == 3
    again = network()
    resumed = [pruning_of(network(), OneShot(0)), *callbacks()]
    trainer = fit(again, digits, resumed, tmp_path, epochs=8, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_best_model_is_found_in_a_moved_folder(digits, tmp_path: Path) -> None:
    def callbacks(folder: Path) -> list[Callback]:
        best = CheckpointAtTarget(folder, filename="best", monitor="val/accuracy", mode="max")
        return [best, ModelCheckpoint(folder, filename="last", enable_version_counter=False)]

    old, new = tmp_path / "old", tmp_path / "new"
    model = network()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(model, digits, [pruning_of(model, OneShot(0)), *callbacks(old), Crash(2)], tmp_path, epochs=3)
    score = torch.load(old / "last.ckpt", weights_only=True)["callbacks"]
    before = next(state["best_model_score"] for key, state in score.items() if key.startswith("CheckpointAtTarget"))
    old.rename(new)
    again = network()
    resumed = callbacks(new)
    seen: list[Any] = []

    class Look(Callback):
        def on_train_start(self, *_: Any) -> None:
            seen.append((resumed[0].best_model_score, resumed[0].best_model_path))  # type: ignore[attr-defined]

    fit(again, digits, [pruning_of(network(), OneShot(0)), *resumed, Look()], tmp_path, 3, ckpt_path=new / "last.ckpt")
    assert seen == [(before, str(new / "best.ckpt"))]


def test_masks_of_other_scores_are_refused_on_resume(digits, tmp_path: Path) -> None:
    model = network()
    last = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    fit(model, digits, [pruning_of(model, OneShot(0)), last], tmp_path, epochs=1)
    other = pruning_of(network(), OneShot(0))
    other._scores = {name: -value for name, value in other._scores.items()}
    with pytest.raises(MmpError, match=r"made from other scores; start again with force=true"):
        fit(network(), digits, [other], tmp_path, epochs=2, ckpt_path=tmp_path / "last.ckpt")
