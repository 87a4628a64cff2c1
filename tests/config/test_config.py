"""The real configuration files compose and validate, and every mistake is answered in one line."""

from __future__ import annotations

from typing import Any

import pytest
from composing import composed
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from partly import partly_slow
from places import CONF

from mmp.config.choices import require_names
from mmp.config.explain import explain
from mmp.config.schema import NO_NETWORK, BudgetConfig, PlanConfig, PruneConfig, TrainConfig
from mmp.config.validate import validate
from mmp.errors import MmpError, nearest

OF_PRUNE = {"criterion", "signal", "strategy", "allocation", "ranges", "schedule", "reconstruct", "finetune"}
STRATEGIES = {
    "conservative", "aggressive", "balanced", "p30", "p50", "p70", "p90", "proportional", "classifier_heavy",
    "feature_heavy",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("hydra")


def choices() -> list[tuple[str, str]]:
    paths = sorted(CONF.glob("*/*.yaml"))
    return [(path.parent.name, path.stem) for path in paths if path.parent.name != "hydra"]


NEEDS = {"timm": ["model.name=resnet18"], "own": ["model._target_=my_models.ResNet20"]}
NEEDS |= {"imagefolder": ["data.root=images", "data.classes=3"]}
NEEDS |= {name: ["data=cifar10"] for name in ("vgg11", "resnet18", "levit_384", "swin_tiny")}
PAPER = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml"))


FIRST = {group: (group, choice) for group, choice in reversed(choices())}


@pytest.mark.parametrize("file", partly_slow(choices(), quick=FIRST.values()), ids="-".join)
def test_every_file_composes_and_validates(file: tuple[str, str]) -> None:
    group, choice = file
    overrides = [f"{group}={choice}", *NEEDS.get(choice, [])]
    assert isinstance(validate(composed(*overrides)), PruneConfig)
    if group not in OF_PRUNE and (group, choice) not in {
        ("callbacks", "prune"),
        ("experiment", "demo"),
        ("experiment", "channels"),
    }:
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


@pytest.mark.slow
def test_a_plan_takes_what_a_run_takes_and_needs_no_data() -> None:
    config = validate(composed("model=swin_tiny", "ranges=swin", "finetune=none", "signal=product", name="plan"))
    assert isinstance(config, PlanConfig)
    assert config.data is None
    assert config.model.num_classes == 100
    assert validate(composed("model=swin_tiny", "data=cifar10", name="plan")).model.num_classes == 10


@pytest.mark.slow
def test_the_ten_strategies_are_the_ten_of_the_method() -> None:
    assert {path.stem for path in (CONF / "strategy").glob("*.yaml")} == STRATEGIES
    for name in STRATEGIES:
        assert validate(composed(f"strategy={name}")).strategy.name == name


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.validation=1.5", "data.validation", "1.5"),
        ("data.calibration=0", "data.calibration", "0"),
        ("data.batch_size=0", "data.batch_size", "0"),
        ("data.workers=-1", "data.workers", "-1"),
        ("data.mean=[0.1,0.2]", "data.mean", "0.2"),
        ("data.std=[0]", "data.std", "0"),
        ("data.augment=3", "data.augment=3: must be null, or arguments of", "{hflip: 0.5}"),
        ("trainer.devices=0", "trainer.devices", "0"),
        ("finetune.epochs=-1", "finetune.epochs", "-1"),
        ("dense.epochs=0", "dense.epochs", "0"),
        ("finetune.learning_rate=0", "finetune.learning_rate", "0"),
        ("finetune.weight_decay=-1", "finetune.weight_decay", "-1"),
        ("finetune.label_smoothing=1", "finetune.label_smoothing", "1"),
        ("finetune.warmup_epochs=0.5", "finetune.warmup_epochs", "finetune.by_step=true"),
        ("dense.warmup_epochs=0.5", "dense.warmup_epochs", "0.5"),
        ("dense.warmup_epochs=inf", "dense.warmup_epochs", "inf"),
        ("budget=1.2", "budget", "1.2"),
        ("budget=much", "budget", "much"),
        ("budget.megabytes=0", "budget.megabytes", "0"),
        ("budget.megabytes=few", "budget.megabytes", "few"),
        ("budget.strategies=-1", "budget.strategies=-1", "{p70: 0.9}"),
        ("seed=-1", "seed=-1", "4294967295"),
        ("seed=4294967296", "seed=4294967296", "4294967295"),
        ("seed=18446744073709551616", "seed=18446744073709551616", "4294967295"),
        ("data.classes=1", "data.classes=1", "at least 2"),
        ("finetune.learning_rate=nan", "finetune.learning_rate=nan", "finite"),
        ("dense.weight_decay=inf", "dense.weight_decay=inf", "finite"),
        ("+callbacks.early_stopping.min_delta=nan", "callbacks.early_stopping.min_delta=nan", "finite"),
        ("data.mean=[nan]", "data.mean[0]=nan", "finite"),
        ("+model.kwargs.drop_rate=-inf", "model.kwargs.drop_rate=-inf", "finite"),
        ("budget=nan", "budget=nan", "finite"),
        ("finetune.min_learning_rate=1", "finetune.min_learning_rate=1", "finetune.learning_rate=0.001"),
        ("dense.min_learning_rate=-1", "dense.min_learning_rate=-1", "at least 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1", "at least 0"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0", "at least 1"),
        ("callbacks.best=3", "callbacks.best=3", "_target_"),
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
        ("reconstruct.tuning.images=63", "reconstruct.tuning.images", "63"),
        ("reconstruct.tuning.steps=0", "reconstruct.tuning.steps", "0"),
        ("reconstruct.tuning.learning_rate=0", "reconstruct.tuning.learning_rate", "0.0"),
        ("reconstruct.tuning.batch_size=0", "reconstruct.tuning.batch_size", "0"),
        ("reconstruct.tuning.logits=-1", "reconstruct.tuning.logits", "-1.0"),
        ("reconstruct.tuning.precision=bf16", "reconstruct.tuning.precision", "bf16"),
        ("strategy.position=1.2", "strategy.position", "1.2"),
        ("ranges.default=[0,1.2]", "ranges.default", "1.2"),
        ("ranges.default=[0.5,0.2]", "ranges.default", "0.5"),
        ("ranges.constraints.small=[0.1]", "ranges.constraints.small", "0.1"),
        ("ranges.targets=[1.2]", "ranges.targets", "1.2"),
        ("ranges.source=guesses", "ranges.source", "guesses"),
        ("ranges.groups.late=conv", "ranges.groups.late", "conv"),
        ("ranges.groups.late=[{rolle: [conv]}]", "ranges.groups.late", "rolle"),
        ("ranges.groups.late=[{stage: [first]}]", "ranges.groups.late: stage", "first"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, key: str, value: str) -> None:
    with pytest.raises(MmpError) as error:
        validate(composed(override))
    assert key in str(error.value)
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("strategy=balnced", ["strategy=balnced", "'balanced'"]),
        ("sed=1", ["sed", "'seed'"]),
        ("finetune.epoch=3", ["finetune.epoch", "'epochs'"]),
        ("finetune.epochs=many", ["finetune.epochs", "many"]),
        ("ranges.rules=[{rolle: [conv]}]", ["rolle", "'role'"]),
        ("modle=cnn", ["modle"]),
        ("experiment=paper/vgg11_cifar", ["experiment=paper/vgg11_cifar", "'paper/vgg11_cifar10'"]),
        ("budget.strategies.p90=0.9", ["budget.strategies.p90", "+budget.strategies.p90="]),
        ("hydra/launcher=jobli", ["hydra/launcher=jobli", "'joblib'"]),
        ("hydra/lancher=joblib", ["hydra/lancher", "'hydra/launcher'"]),
        ("model@other=cnn", ["model@other", "+model@other="]),
        ("strategy balanced", ["strategy balanced", "key=value"]),
        ("seed=1,2", ["seed=1,2", "--multirun"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_nearest(override: str, parts: list[str]) -> None:
    with pytest.raises(HydraException) as error:
        composed(override)
    line = explain(error.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "override", ["strategy=-1", "reconstruct=null", "+model=1e308", "hydra/launcher=2", "data={}", "schedule=[[1]]"]
)
def test_a_config_group_takes_the_name_of_a_choice(override: str) -> None:
    group = override.lstrip("+").partition("=")[0]
    with pytest.raises(MmpError, match=f"{group} takes the name of a choice; "):
        require_names([override])
    require_names(["strategy=p50", "seed=1", "-m", "strategy=glob(*)", "model=a,b", "strategy=[", "trainer.devices=1"])


@pytest.mark.parametrize("model", ["timm", "own"])
def test_a_model_without_a_name_is_named_where_it_is_needed(model: str) -> None:
    cfg = compose("prune", [f"model={model}"], return_hydra_config=True)
    with pytest.raises(OmegaConfBaseException) as error:  # the name of the model is a part of the folder's name
        _ = cfg.hydra.run.dir
    assert explain(error.value) == NO_NETWORK


def test_a_missing_value_is_named_where_it_is_needed() -> None:
    cfg = compose("prune", return_hydra_config=True)
    cfg.data.name = "???"
    with pytest.raises(OmegaConfBaseException) as error:
        _ = cfg.hydra.run.dir
    assert explain(error.value) == "data.name: must be set, with data.name=..."


def test_a_primary_configuration_that_does_not_exist_is_named() -> None:
    with pytest.raises(HydraException) as error:
        composed(name="prunes")
    assert explain(error.value).startswith("--config-name=prunes: no such file; did you mean 'prune'?")


@pytest.mark.parametrize("name", ["train", "prune"])
def test_a_configuration_of_another_command_is_refused(name: str) -> None:
    with pytest.raises(MmpError, match=r"--config-name: .* plan_schema"):
        validate(composed(name=name), PlanConfig)
    with pytest.raises(MmpError, match=r"--config-name: .* train_schema"):
        validate(OmegaConf.create({"seed": 0}))


def test_overlays_take_precedence_over_the_defaults() -> None:
    assert composed("experiment=demo").sweep == "demo"
    assert composed("debug=fast").finetune.epochs == 1
    channels = validate(composed("experiment=channels"), PruneConfig)
    assert (channels.pattern, channels.ranges.name, channels.reconstruct.name) == (
        "channels",
        "channels",
        "least_squares",
    )
    assert channels.budget.sparsity is None


@pytest.mark.slow
def test_interpolations_reach_the_recipe() -> None:
    def epochs(data: str) -> Any:
        return validate(composed(f"data={data}")).dense.epochs

    assert epochs("digits") == 40
    assert epochs("fashion_mnist") == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranges.constraints='${seed}'", r"^ranges.constraints=0: must be keys with values; an interpolation"),
        ("ranges.rules='${seed}'", r"^ranges.rules=0: must be a list;"),
        ("ranges.targets='${sweep}'", r"^ranges.targets=\w+: must be a list;"),
        ("data.mean='${data.classes}'", r"^data.mean=10: must be a list;"),
        ("model.kwargs='${seed}'", r"^model.kwargs=0: must be keys with values;"),
        ("ranges.groups='${data.mean}'", r"^ranges.groups=\[.*\]: must be keys with values;"),
    ],
)
def test_an_interpolation_in_place_of_a_section_or_a_list_is_refused(override: str, message: str) -> None:
    with pytest.raises(MmpError, match=message):
        validate(composed(override))


def test_an_interpolation_may_refer_to_a_list() -> None:
    assert validate(composed("data.std='${data.mean}'")).data.std == [0.305]


def test_a_number_of_batches_stays_a_number_and_a_fraction_a_fraction() -> None:
    config = validate(composed("trainer.limit_train_batches=1", "trainer.limit_val_batches=1.0"))
    assert (type(config.trainer.limit_train_batches), config.trainer.limit_train_batches) == (int, 1)
    assert (type(config.trainer.limit_val_batches), config.trainer.limit_val_batches) == (float, 1.0)


def test_many_choices_are_not_all_listed() -> None:
    hint = nearest("xyzzy", (f"name{i}" for i in range(1000)))
    assert hint == "none of the 1000 choices is similar; the first are name0, name1, name10"
