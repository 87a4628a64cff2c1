"""The paper's four experiments from end to end, on a few images in the formats of the real data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import command
from small_files import write_cifar10, write_cifar_batch, write_gtsrb

SMALL = ["dense.epochs=1", "dense.warmup_epochs=0", "finetune.epochs=1", "trainer.limit_train_batches=1"]
SMALL += ["data.validation=0.25", "data.calibration=0.25", "data.batch_size=4", "data.workers=0"]


def resolution(size: int) -> list[str]:
    """Return overrides for a model with a resolution of its own; it does not change the weights that are pruned."""
    return [f"data.image_size={size}", f"+model.kwargs.img_size={size}"]


# One strategy per experiment, with the sparsity of its plan; the two CNNs have the authors' budgets. (Swin has 0.4478
# with a hundred classes; here it has ten.)
CASES = {
    "vgg11_cifar10": ("p70", 0.92, []),
    "resnet18_gtsrb": ("feature_heavy", 0.88, ["data.classes=4"]),
    "levit_384_cifar10": ("proportional", 0.4872, ["model.pretrained=false", *resolution(64)]),
    "swin_tiny_cifar100": ("p70", 0.4487, ["model.pretrained=false", "data.classes=10", *resolution(56)]),
}


def write_data(root: Path, experiment: str) -> None:
    if experiment.endswith("cifar10"):
        write_cifar10(root, count=10)
    elif experiment.endswith("cifar100"):
        for part, count in (("train", 40), ("test", 10)):
            write_cifar_batch(root / "cifar-100-python" / part, count, {"fine_labels": 10, "coarse_labels": 5})
    else:
        write_gtsrb(root, frames=1, classes=4)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", CASES)
def test_an_experiment_runs_from_end_to_end(experiment: str, tmp_path: Path) -> None:
    strategy, sparsity, overrides = CASES[experiment]
    write_data(tmp_path, experiment)
    arguments = [f"experiment=paper/{experiment}", "signal=product", f"strategy={strategy}", *SMALL, *overrides]
    arguments += [f"data.root={tmp_path}", f"paths.results={tmp_path}/results"]
    command("prune.py", *arguments)
    (path,) = tmp_path.glob("results/runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["status"] == "completed"
    assert result["epochs"] == 1
    assert result["sparsity"] == pytest.approx(sparsity, abs=5e-4)
    assert result["reconstruction"] is None
