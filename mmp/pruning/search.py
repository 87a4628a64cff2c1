"""Search: where each group of layers goes in its range, found on validation images instead of stated by a strategy.

A trial is a position in [0, 1] for every group; it is worth what the model reaches when its kept weights are re-solved
and nothing is trained, which takes seconds. optuna chooses the trials (Akiba et al. 2019, arXiv 1907.10902; its
tree-structured Parzen estimator), beginning with positions 0, 0.5 and 1 for all: strategies conservative, balanced and
aggressive.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmp.errors import MmpError
from mmp.pruning.layers.layer import Layer

log = logging.getLogger(__name__)

_FAMILIES = {
    "attn_qkv": "attention", "attn_proj": "attention", "mlp_fc1": "mlp", "mlp_fc2": "mlp", "conv": "conv",
    "classifier": "classifier",
}  # fmt: skip
_HALVED = ("attention", "mlp", "conv")


@dataclass(frozen=True)
class Trial:
    """One set of positions that was tried.

    Attributes:
        positions: Position in [0, 1] of every group.
        accuracy: On validation images, re-solved and not trained; a fraction.
        sparsity: Of all prunable weights, a fraction.
    """

    positions: Mapping[str, float]
    accuracy: float
    sparsity: float


def search_groups(layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Return the layers' names in groups that share a position: attention, MLPs and convolutions by half of the depth.

    Args:
        layers: The model's prunable layers.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        family = _FAMILIES.get(layer.role, "transitions")  # stems, embeddings, downsampling, depthwise: few weights
        half = f", {'first' if layer.depth < 0.5 else 'second'} half" if family in _HALVED else ""
        groups[family + half].append(layer.name)
    return {name: tuple(members) for name, members in groups.items()}


def search(
    groups: Sequence[str],
    evaluate: Callable[[Mapping[str, float]], tuple[float, float]],
    trials: int,
    seed: int,
    sparsity_varies: bool,
) -> list[Trial]:
    """Try positions of groups.

    Args:
        groups: Their names.
        evaluate: From positions to accuracy and sparsity, both to be high.
        trials: How many to try.
        seed: Of the sampler; the same seed tries the same.
        sparsity_varies: Whether sparsity is a second objective, or the same for all.

    Returns:
        The trials in order; positions that gave an error, such as a budget out of their reach, are left out.

    Raises:
        MmpError: if optuna is not installed, or no trial succeeded.
    """
    try:
        import optuna
    except ImportError as error:
        raise MmpError("allocation=searched needs optuna: pip install 'mmp[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    objectives = 2 if sparsity_varies else 1
    study = optuna.create_study(directions=[optuna.study.StudyDirection.MAXIMIZE] * objectives, sampler=sampler)
    for position in (0.0, 0.5, 1.0):
        study.enqueue_trial(dict.fromkeys(groups, position))
    found, refused = [], ""
    for _ in range(trials):
        trial = study.ask()
        positions = {name: trial.suggest_float(name, 0.0, 1.0) for name in groups}
        try:
            accuracy, sparsity = evaluate(positions)
        except MmpError as error:
            refused = str(error)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        found.append(Trial(positions, accuracy, sparsity))
        study.tell(trial, [accuracy, sparsity] if sparsity_varies else accuracy)
        log.info("trial %d: accuracy %.4f at sparsity %.4f", len(found), accuracy, sparsity)
    if not found:
        raise MmpError(f"allocation=searched: none of {trials} trials is possible; the last: {refused}")
    return found


def best_of(trials: Sequence[Trial], least_accuracy: float | None) -> Trial:
    """Return the trial to use.

    Args:
        trials: What was tried; not empty.
        least_accuracy: If given, the sparsest trial that reaches it is the best; if none does, or it is None, the most
            accurate.
    """
    good = [trial for trial in trials if least_accuracy is not None and trial.accuracy >= least_accuracy]
    if good:
        return max(good, key=lambda trial: (trial.sparsity, trial.accuracy))
    return max(trials, key=lambda trial: (trial.accuracy, trial.sparsity))
