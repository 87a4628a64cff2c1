"""What the study compares: its networks, the fine-tuning that all runs share, and the runs of its parts."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.oneshot_networks import NETWORKS
from mmp.config.choices import choices_of

# The settings of all runs. The learning rate falls to zero over 20 epochs, at most the paper's number, and the weights
# of the epoch with the best validation accuracy are measured; nothing stops a training before its rate is low.
RUN = (
    "data.augment.scale=[0.8,1.0]", "data.batch_size=256", "data.workers=0",
    "finetune=default", "finetune.epochs=20", "finetune.learning_rate=1e-2", "finetune.by_step=true",
    "finetune.warmup_epochs=0.5", "finetune.distillation=0.9", "finetune.temperature=4",
    "callbacks.early_stopping=null", "callbacks.last=null",
    "trainer.precision=bf16-mixed", "trainer.compile=true", "trainer.enable_progress_bar=false",
    "reconstruct.images=3000", "reconstruct.tuning.images=3000", "reconstruct.cache_megabytes=0", "logger=none",
)  # fmt: skip
SOLVED = {
    "masked": ("reconstruct=none",),
    "layer-wise": ("reconstruct=least_squares",),
    "joint": ("reconstruct=joint", "reconstruct.tuning.steps=400"),
}
RESOLVED = ("layer-wise", "joint")
UNPRUNED = "unpruned"
BASELINES = {
    "MAG": ("criterion=mag",),
    "SNIP": ("criterion=snip",),
    "GraSP": ("criterion=grasp",),
    "LAMP": ("criterion=lamp",),
    "ERK": ("criterion=erk",),
    "block Fisher": ("criterion=block_fisher",),  # as in WoodFisher
}
OURS = {
    "obs": ("signal=obs", "allocation=lamp"),
    "searched": ("signal=obs", "allocation=searched"),
}
SIGNALS = ("magnitude", "product", "gradient")
SPARSITIES = {
    "resnet20": (0.8, 0.9, 0.95),
    "resnet20_zeros": (0.8, 0.9, 0.95),
    "resnet56_zeros": (0.8, 0.9, 0.95),
}


@dataclass(frozen=True)
class Run:
    """A configuration of the study.

    Attributes:
        method: Which weights are pruned.
        solved: How the kept weights are re-solved before the training.
    """

    method: str
    solved: str


def strategies(signal: str) -> dict[str, tuple[str, ...]]:
    """Return the settings of a signal's strategies, without p50, which has the same masks as balanced."""
    names = [name for name in choices_of("strategy") if name != "p50"]
    return {f"{signal}, {name}": (f"signal={signal}", f"strategy={name}") for name in names}


def methods() -> dict[str, tuple[str, ...]]:
    """Return the settings of all methods."""
    every = {UNPRUNED: ("criterion=mag",), **BASELINES, **OURS}
    for signal in SIGNALS:
        every |= strategies(signal)
    return every


def parts() -> dict[str, list[Run]]:
    """Return the runs of each part of the study; the part that the claims need most comes first."""
    return {
        "ours": [Run(name, solved) for solved in RESOLVED for name in OURS],
        "baselines": [Run(name, "masked") for name in (UNPRUNED, *BASELINES)],
        "strategies": [Run(name, "masked") for name in strategies("magnitude")],
        "re-solved-baselines": [Run(name, solved) for solved in RESOLVED for name in BASELINES],
        "signals": [Run(name, "masked") for signal in ("product", "gradient") for name in strategies(signal)],
        "re-solved-strategies": [Run(name, solved) for solved in RESOLVED for name in strategies("magnitude")],
    }


def shared_settings(network: str, checkpoint: str, seed: int) -> tuple[str, ...]:
    """Return the settings that all runs of a network and a seed share."""
    return (*NETWORKS[network].settings, *RUN, f"model.checkpoint={checkpoint}", f"seed={seed}")


def settings_of_run(run: Run, sparsity: float) -> tuple[str, ...]:
    """Return the settings of a run beside the shared ones. An unpruned run is the same at every sparsity."""
    budget = 0.0 if run.method == UNPRUNED else sparsity
    return (*methods()[run.method], *SOLVED[run.solved], f"budget={budget}")
