"""Search: the position of each group of layers in its ranges, found on validation images instead of set by a strategy.

A trial is a position in [0, 1] for every group. Its objective is the validation accuracy of the model with its kept
weights re-solved and nothing trained, which takes seconds. optuna chooses the trials (Akiba et al. 2019, arXiv
1907.10902; tree-structured Parzen estimator), beginning with positions 0, 0.5 and 1 for all groups: the strategies
conservative, balanced and aggressive.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

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
    """The result of one set of positions.

    Attributes:
        positions: The position of every group, in [0, 1], by its name.
        accuracy: Validation accuracy of the re-solved model without training, a fraction.
        sparsity: Sparsity of all prunable weights, a fraction.
    """

    positions: Mapping[str, float]
    accuracy: float
    sparsity: float


def search_groups(layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Return the groups of layers that share a position: the names of their layers, by the group's name.

    Attention layers, MLPs and convolutions form one group each for the first and the second half of the depth. The
    classifier is a group, and all other layers are one (``transitions``).

    Args:
        layers: The model's prunable layers.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        family = _FAMILIES.get(layer.role, "transitions")  # stems, embeddings, downsampling, depthwise
        half = f", {'first' if layer.depth < 0.5 else 'second'} half" if family in _HALVED else ""
        groups[family + half].append(layer.name)
    return {name: tuple(members) for name, members in groups.items()}


def require_optuna() -> None:
    """Raise unless optuna is installed.

    Raises:
        MmpError: if it is not.
    """
    if find_spec("optuna") is None:
        raise MmpError("allocation=searched needs optuna: pip install 'mmp[search]'")


def search(
    groups: Sequence[str],
    evaluate: Callable[[Mapping[str, float]], tuple[float, float]],
    trials: int,
    seed: int,
    sparsity_varies: bool,
) -> list[Trial]:
    """Try positions of groups.

    Args:
        groups: Names of the groups.
        evaluate: Returns accuracy and sparsity for the position of every group; both are maximised.
        trials: Number of trials.
        seed: Seed of the sampler; the same seed gives the same trials.
        sparsity_varies: Whether sparsity is a second objective; False if it is the same for all trials.

    Returns:
        The trials in order, without those for which ``evaluate`` raised an `MmpError`, such as a budget out of reach.

    Raises:
        MmpError: if optuna is not installed, or no trial succeeded.
    """
    require_optuna()
    import optuna

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
        raise MmpError(f"allocation=searched: none of {trials} trials is possible; the last error: {refused}")
    return found


def best_of(trials: Sequence[Trial], least_accuracy: float | None) -> Trial:
    """Return the best trial: the sparsest one with at least an accuracy, or else the most accurate one.

    Args:
        trials: At least one trial.
        least_accuracy: The accuracy, a fraction. If it is None or no trial reaches it, the most accurate trial is best.
    """
    good = [trial for trial in trials if least_accuracy is not None and trial.accuracy >= least_accuracy]
    if good:
        return max(good, key=lambda trial: (trial.sparsity, trial.accuracy))
    return max(trials, key=lambda trial: (trial.accuracy, trial.sparsity))
