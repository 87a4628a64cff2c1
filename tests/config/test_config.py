"""The real configuration files: they compose, validate, name runs, and every mistake is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from places import CONF

from mmp.config.explain import explain
from mmp.config.identity import run_name
from mmp.config.registration import register
from mmp.config.schema import BudgetConfig, PlanConfig, PruneConfig, TrainConfig
from mmp.config.validate import validate
from mmp.errors import MmpError, nearest

OF_PRUNE = {"criterion", "signal", "strategy", "allocation", "ranges", "schedule", "reconstruct", "finetune"}
STRATEGIES = {
    "conservative", "aggressive", "balanced", "p30", "p50", "p70", "p90", "proportional", "classifier_heavy",
    "feature_heavy",
}  # fmt: skip


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str, name: str = "prune") -> DictConfig:
    return compose(name, list(overrides))


def choices() -> list[tuple[str, str]]:
    paths = sorted(CONF.glob("*/*.yaml"))
    return [(path.parent.name, path.stem) for path in paths if path.parent.name != "hydra"]


NEEDS = {"timm": ["model.name=resnet18"], "imagefolder": ["data.root=images", "data.classes=3"]}
NEEDS |= {name: ["data=cifar10"] for name in ("vgg11", "resnet18", "levit_384", "swin_tiny")}
PAPER = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml"))


@pytest.mark.parametrize(("group", "choice"), choices())
def test_every_file_composes_and_validates(group: str, choice: str) -> None:
    overrides = [f"{group}={choice}", *NEEDS.get(choice, [])]
    assert isinstance(validate(composed(*overrides)), PruneConfig)
    if group not in OF_PRUNE and (group, choice) not in {("callbacks", "prune"), ("experiment", "demo")}:
        if choice == "fast":
            return  # the overlay shortens fine-tuning too
        assert type(validate(composed(*overrides, name="train"))) is TrainConfig


@pytest.mark.parametrize("name", ["prune", "plan"])
@pytest.mark.parametrize("experiment", PAPER)
def test_the_papers_experiments_are_its_protocol(experiment: str, name: str) -> None:
    config = validate(composed(f"experiment=paper/{experiment}", name=name))
    rates = {"vgg11": 1e-4, "resnet18": 5e-5, "levit_384": 5e-5, "swin_tiny": 5e-5}
    model = next(model for model in rates if experiment.startswith(model))
    assert config.model.label == model
    assert config.data.name == experiment.rpartition("_")[2]
    assert config.ranges.name == model.partition("_")[0].rstrip("0123456789")
    assert config.data.batch_size == 128
    assert config.finetune.learning_rate == rates[model]
    assert config.finetune.optimizer == ("adamw" if model == "levit_384" else "adam")
    assert config.finetune.weight_decay == (0.05 if model == "levit_384" else 0.0)
    assert config.finetune.epochs == (30 if model == "swin_tiny" else 20)
    assert config.finetune.scheduler == "none"
    assert config.callbacks["early_stopping"]["patience"] == 3
    assert config.model.pretrained == (model in ("levit_384", "swin_tiny"))
    assert config.budget.of("p30") == (0.90 if model in ("vgg11", "resnet18") else None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (None, BudgetConfig()),
        ("budget=null", BudgetConfig()),
        ("budget=0.9", BudgetConfig(sparsity=0.9)),
        ("budget.megabytes=5", BudgetConfig(megabytes=5)),
        ("budget={megabytes: 4.5}", BudgetConfig(megabytes=4.5)),
        ("+budget.strategies.p70=0.92", BudgetConfig(strategies={"p70": 0.92})),
    ],
)
def test_budgets_are_a_number_or_megabytes(override: str | None, expected: BudgetConfig) -> None:
    for name in ("prune", "plan"):
        assert validate(composed(*([override] if override else []), name=name)).budget == expected


def test_a_plan_takes_what_a_run_takes_and_needs_no_data() -> None:
    config = validate(composed("model=swin_tiny", "ranges=swin", "finetune=none", "signal=product", name="plan"))
    assert isinstance(config, PlanConfig)
    assert config.data is None
    assert config.model.num_classes == 100
    assert validate(composed("model=swin_tiny", "data=cifar10", name="plan")).model.num_classes == 10


def test_the_ten_strategies_are_the_ten_of_the_method() -> None:
    assert {path.stem for path in (CONF / "strategy").glob("*.yaml")} == STRATEGIES
    for name in STRATEGIES:
        assert validate(composed(f"strategy={name}")).strategy.name == name


def test_run_names_are_readable_and_stable() -> None:
    name = run_name(composed("model=vit", "signal=product", "strategy=p70", "seed=3"))
    assert name.startswith("vit-digits-product-p70-s3-")
    assert name == run_name(composed("model=vit", "signal=product", "strategy=p70", "seed=3"))


@pytest.mark.parametrize(
    "override",
    ["finetune.learning_rate=0.5", "seed=1", "strategy.position=0.51", "ranges.default=[0.1,0.2]", "budget=0.5",
     "schedule.epoch=1", "data.validation=0.3", "data.root=elsewhere", "trainer.precision=bf16-mixed",
     "callbacks.early_stopping.patience=9", "model.kwargs.stem_width=16", "dense.epochs=3"],
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_name(override: str) -> None:
    assert run_name(composed(override)) != run_name(composed())


@pytest.mark.parametrize(
    "override",
    ["paths.results=elsewhere", "paths.cache=elsewhere", "logger=wandb", "sweep=other", "force=true",
     "trainer.enable_progress_bar=false", "callbacks.progress=null", "data.workers=3"],
)  # fmt: skip
def test_what_does_not_change_the_numbers_leaves_the_name(override: str) -> None:
    assert run_name(composed(override)) == run_name(composed())


def test_a_checkpoint_counts_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    names = []
    for content in (b"one", b"two", b"two"):
        path.write_bytes(content)
        names.append(run_name(composed(f"model.checkpoint={path}")))
    assert names[0] != names[1] == names[2]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.validation=1.5", "data.validation", "1.5"),
        ("data.calibration=0", "data.calibration", "0"),
        ("data.batch_size=0", "data.batch_size", "0"),
        ("data.workers=-1", "data.workers", "-1"),
        ("data.mean=[0.1,0.2]", "data.mean", "0.2"),
        ("data.std=[0]", "data.std", "0"),
        ("trainer.devices=0", "trainer.devices", "0"),
        ("finetune.epochs=-1", "finetune.epochs", "-1"),
        ("dense.epochs=0", "dense.epochs", "0"),
        ("finetune.learning_rate=0", "finetune.learning_rate", "0"),
        ("finetune.weight_decay=-1", "finetune.weight_decay", "-1"),
        ("finetune.label_smoothing=1", "finetune.label_smoothing", "1"),
        ("finetune.warmup_epochs=0.5", "finetune.warmup_epochs", "finetune.by_step=true"),
        ("dense.warmup_epochs=0.5", "dense.warmup_epochs", "0.5"),
        ("budget=1.2", "budget", "1.2"),
        ("budget=much", "budget", "much"),
        ("budget.megabytes=0", "budget.megabytes", "0"),
        ("budget.megabytes=few", "budget.megabytes", "few"),
        ("+budget.strategies.p70=2", "budget.strategies.p70", "2"),
        ("budget={sparsity: 0.9, megabytes: 5}", "budget.sparsity=0.9", "budget.megabytes=5"),
        ("+budget.megabyte=5", "budget.megabyte", "'megabytes'"),
        ("model.num_classes=9", "model.num_classes=9", "10 classes"),
        ("model.in_chans=3", "model.in_chans=3", "1 channels"),
        ("model.num_classes=-3", "model.num_classes", "-3"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches", "0"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches", "1.5"),
        ("trainer.limit_val_batches=few", "trainer.limit_val_batches", "few"),
        ("data.crop_pct=0", "data.crop_pct", "0"),
        ("strategy.position=1.2", "strategy.position", "1.2"),
        ("ranges.default=[0,1.2]", "ranges.default", "1.2"),
        ("ranges.default=[0.5,0.2]", "ranges.default", "0.5"),
        ("ranges.constraints.small=[0.1]", "ranges.constraints.small", "0.1"),
        ("ranges.targets=[1.2]", "ranges.targets", "1.2"),
        ("ranges.source=guesses", "ranges.source", "guesses"),
        ("ranges.groups.late=conv", "ranges.groups.late", "conv"),
        ("ranges.groups.late=[{rolle: [conv]}]", "ranges.groups.late", "rolle"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(override: str, key: str, value: str) -> None:
    with pytest.raises(MmpError) as error:
        validate(composed(override))
    assert key in str(error.value)
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("strategy=balnced", ["strategy=balnced", "'balanced'"]),
        ("sed=1", ["sed", "'seed'"]),
        ("finetune.epoch=3", ["finetune.epoch", "'epochs'"]),
        ("finetune.epochs=many", ["finetune.epochs", "many"]),
        ("ranges.rules=[{rolle: [conv]}]", ["rolle", "'role'"]),
        ("modle=cnn", ["modle"]),
        ("experiment=paper/vgg11_cifar", ["experiment=paper/vgg11_cifar", "'paper/vgg11_cifar10'"]),
        ("budget.strategies.p90=0.9", ["budget.strategies.p90", "+budget.strategies.p90="]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_nearest(override: str, told: list[str]) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011  (Hydra has several)
        composed(override)
    line = explain(error.value)
    assert "\n" not in line
    for part in told:
        assert part in line


def test_overlays_win_over_the_defaults() -> None:
    assert composed("experiment=demo").sweep == "demo"
    assert composed("debug=fast").finetune.epochs == 1


def test_interpolations_reach_the_recipe() -> None:
    def epochs(data: str) -> Any:
        return validate(composed(f"data={data}")).dense.epochs

    assert epochs("digits") == 40
    assert epochs("fashion_mnist") == 8


def test_a_number_of_batches_stays_a_number_and_a_fraction_a_fraction() -> None:
    config = validate(composed("trainer.limit_train_batches=1", "trainer.limit_val_batches=1.0"))
    assert (type(config.trainer.limit_train_batches), config.trainer.limit_train_batches) == (int, 1)
    assert (type(config.trainer.limit_val_batches), config.trainer.limit_val_batches) == (float, 1.0)


def test_many_choices_are_not_all_listed() -> None:
    told = nearest("xyzzy", (f"name{i}" for i in range(1000)))
    assert told == "none of the 1000 choices is similar; the first are name0, name1, name10"
