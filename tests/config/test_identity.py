"""The identity of a run: what changes it, what does not, and that it stays the same from version to version."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from composing import composed

from mmp.config.identity import identity, protocol_of, run_name, run_title, settings_of
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate


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


def test_a_pattern_has_one_spelling() -> None:
    one, other, narrow = (composed(f"pattern={text}") for text in ("channels", "channels:16", "channels:8"))
    assert run_name(one) == run_name(other) != run_name(narrow)
    assert run_title(other) == run_title(one)
    assert "-channelsof8-" in run_name(narrow)
    checked = validate(composed("pattern=channels:16"), PruneConfig)
    assert checked.pattern == "channels"
    assert identity(settings_of(checked)) == identity(settings_of(validate(one, PruneConfig)))
    assert run_name(composed("pattern=chanels"))  # validation names the mistake


def test_a_checkpoint_counts_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    names = []
    for content in (b"one", b"two", b"two"):
        path.write_bytes(content)
        names.append(run_name(composed(f"model.checkpoint={path}")))
    assert names[0] != names[1] == names[2]


def test_the_weights_that_are_taken_from_a_checkpoint_count(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    names = [run_name(composed(f"model.checkpoint={path}", f"model.weights_key={key}")) for key in ("null", "a", "b")]
    assert len(set(names)) == 3
    assert names[0] == run_name(composed(f"model.checkpoint={path}"))
    assert "weights_key" not in identity(settings_of(composed()))["model"]


@pytest.mark.parametrize("key", ["model.checkpoint", "model.pretrained_file"])
def test_weights_that_are_replaced_count_although_size_and_time_stay(key: str, tmp_path: Path) -> None:
    path, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    names = []
    for place, content in ((path, b"one"), (path, b"two"), (other, b"six")):
        place.write_bytes(content)
        os.utime(place, ns=(10**18, 10**18))
        place.replace(path)
        names.append(run_name(composed(f"{key}={path}")))
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "address", ["signal._target_", "callbacks.best._target_", "+callbacks.own._target_", "schedule._target_"]
)
def test_the_source_of_a_users_class_counts(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []
    for text in ("class Own: ...\n", "class Own:\n    x = 1\n", "class Own: ...\n"):
        (tmp_path / "own_classes.py").write_text(text)
        importlib.invalidate_caches()
        names.append(run_name(composed(f"{address}=own_classes.Own")))
    assert names[0] == names[2] != names[1]
    assert "own_classes" not in sys.modules


@pytest.mark.parametrize("method", [["criterion=lamp", "budget=0.9"], ["signal=obs", "allocation=lamp", "budget=0.9"]])
def test_a_baseline_of_an_own_network_has_a_name(
    method: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_networks.py").write_text("class Tiny: ...\n")
    importlib.invalidate_caches()
    assert run_name(composed("model=own", "model._target_=own_networks.Tiny", *method)).startswith("Tiny-digits-")


def test_the_source_of_a_users_callback_counts_for_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    protocols = []
    for text in ("class Watch: ...\n", "class Watch:\n    x = 1\n"):
        (tmp_path / "own_callbacks.py").write_text(text)
        importlib.invalidate_caches()
        decisive = identity(settings_of(composed("+callbacks.own._target_=own_callbacks.Watch")))
        protocols.append(protocol_of(decisive))
    assert protocols[0] != protocols[1]


@pytest.mark.parametrize(
    ("config", "overrides", "name"),
    [
        ("train", ["model=vit"], "vit-digits-s0-a8061fd6"),
        ("prune", ["strategy=balanced"], "cnn-digits-magnitude-balanced-s0-b816c3ad"),
        ("prune", ["criterion=lamp", "budget=0.9"], "cnn-digits-lamp-s0-b89addea"),
        ("prune", ["pattern=2:4"], "cnn-digits-magnitude-balanced-2of4-s0-2b381df6"),
        ("prune", ["allocation=searched"], "cnn-digits-magnitude-searched-s0-30c394b6"),
        ("prune", ["+data.augment={hflip: 0.5}"], "cnn-digits-magnitude-balanced-s0-ed59b62a"),
        (
            "prune",
            ["reconstruct=least_squares", "reconstruct.rows_per_column=0", "reconstruct.cache_megabytes=3"],
            "cnn-digits-magnitude-balanced-s0-28130fb9",
        ),
        (
            "prune",
            ["reconstruct=least_squares", "reconstruct.rows_per_column=0", "reconstruct.tuning.steps=3"],
            "cnn-digits-magnitude-balanced-s0-28130fb9",
        ),
        ("prune", ["reconstruct=least_squares"], "cnn-digits-magnitude-balanced-s0-ea0a5f0d"),
        ("prune", ["experiment=paper/swin_tiny_cifar100"], "swin_tiny-cifar100-magnitude-balanced-s0-1ef77510"),
    ],
    ids=str,
)
def test_names_of_runs_stay_the_same(config: str, overrides: list[str], name: str) -> None:
    # Another name means that no earlier run of this configuration is found again: it needs a reason, and a line in the
    # changelog.
    assert run_name(composed(*overrides, name=config)) == name


def test_a_joint_tuning_with_all_rows_is_none_from_before_rows_were_sampled() -> None:
    # Learning rates had another unit then.
    name = run_name(composed("reconstruct=joint", "reconstruct.rows_per_column=0", "reconstruct.tuning.steps=1000"))
    assert name != "cnn-digits-magnitude-balanced-s0-008362e7"


def test_compiled_steps_are_another_run_and_others_are_named_as_before_there_were_any() -> None:
    plain, compiled = (
        composed("reconstruct=joint", f"reconstruct.tuning.compile={value}") for value in ("false", "true")
    )
    assert run_name(plain) != run_name(compiled)
    assert "compile" not in identity(settings_of(plain))["reconstruct"]["tuning"]


def test_a_class_counts_by_its_name_and_a_users_class_by_its_address() -> None:
    moved = composed(
        "signal._target_=mmp.elsewhere.Magnitude", "callbacks.best._target_=callbacks.new.CheckpointAtTarget"
    )
    assert run_name(moved) == run_name(composed())
    names = {run_name(composed(f"signal._target_={module}.Magnitude")) for module in ("mmp", "mine", "theirs")}
    assert len(names) == 3


def test_the_identity_is_plain_data_without_what_changes_no_number() -> None:
    for cfg in (composed(), validate(composed())):
        decisive = identity(settings_of(cfg))
        assert json.loads(json.dumps(decisive)) == decisive
        assert not {"paths", "logger", "sweep", "force"} & decisive.keys()
        assert not {"workers", "dense_epochs", "finetune_epochs"} & decisive["data"].keys()


@pytest.mark.parametrize(
    ("config", "overrides", "title"),
    [
        ("train", ["model=vit"], "dense/vit/s0"),
        ("train", ["model=vit", "model.label=null", "seed=2"], "dense/vit_tiny_patch16_224/s2"),
        ("prune", ["signal=product", "strategy=p70"], "product/p70/s0"),
        ("prune", ["pattern=2:4"], "magnitude/balanced/2:4/s0"),
        ("prune", ["allocation=lamp"], "magnitude/lamp at balanced/s0"),
        ("prune", ["allocation=lamp", "budget=0.9"], "magnitude/lamp/s0"),
        ("prune", ["criterion=lamp"], "lamp/balanced/s0"),
        ("prune", ["criterion=lamp", "budget=0.9"], "lamp/0.9/s0"),
        ("prune", ["criterion=lamp", "budget.sparsity=0.9"], "lamp/0.9/s0"),
        ("prune", ["criterion=lamp", "budget.megabytes=0.25"], "lamp/0.25MB/s0"),
        ("prune", ["criterion=lamp", "+budget.strategies.p50=0.9"], "lamp/balanced/s0"),
    ],
    ids=str,
)
def test_titles_name_what_decides_the_masks(config: str, overrides: list[str], title: str) -> None:
    assert run_title(composed(*overrides, name=config)) == title
