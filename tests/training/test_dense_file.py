"""The names of cached dense models and accuracies hash everything that decides them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from composing import composed

from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.training.dense import accuracy_file, dense_file

OWN = "+callbacks.own._target_=own_dense.Watch"


def configured(*overrides: str) -> PruneConfig:
    return validate(composed(*overrides), PruneConfig)


def data(fingerprint: str = "images") -> Any:
    return SimpleNamespace(fingerprint=fingerprint)


def test_a_users_callback_counts_by_its_source_if_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    called, uncalled = set(), set()
    for text in ("class Watch: ...\n", "class Watch:\n    x = 1\n"):
        (tmp_path / "own_dense.py").write_text(text)
        importlib.invalidate_caches()
        config = configured(OWN)
        called.add(dense_file(config, data(), [pl.Callback()])[0])
        uncalled.add(dense_file(config, data())[0])
    assert len(called) == 2
    assert len(uncalled) == 1


def test_images_count_for_both_files() -> None:
    config, model = configured(), torch.nn.Linear(2, 2)
    assert dense_file(config, data())[1] != dense_file(config, data("others"))[1]
    assert accuracy_file(config, model, data()) != accuracy_file(config, model, data("others"))


def test_the_versions_and_the_code_that_evaluate_count_for_accuracies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = configured(), torch.nn.Linear(2, 2)
    before = accuracy_file(config, model, data()), dense_file(config, data())
    for place, value in (
        ("mmp.training.dense.timm.__version__", "another"),
        ("mmp.training.dense.torch.__version__", "another"),
        ("mmp.training.dense.own_source_digest", lambda *_: "another"),
    ):
        with monkeypatch.context() as context:
            context.setattr(place, value)
            assert accuracy_file(config, model, data()) != before[0], place
            assert dense_file(config, data()) == before[1], place
    assert accuracy_file(config, model, data()) == before[0]
