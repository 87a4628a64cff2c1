"""Copies of configurations."""

from __future__ import annotations

import pickle

from omegaconf import OmegaConf

from mmp.config.copies import copier_of


def test_a_copy_may_be_changed() -> None:
    content = OmegaConf.create({"a": {"b": 1}})
    copied = copier_of(content)
    assert copied.func is pickle.loads
    copied().a.b = 2
    assert copied() == content == {"a": {"b": 1}}


def test_what_pickle_refuses_is_copied() -> None:
    content = {"a": lambda: 1}
    copied = copier_of(content)()
    assert copied == content
    assert copied is not content


def test_an_object_of_a_class_that_was_imported_again_is_copied() -> None:
    old = type("Queue", (), {"__module__": __name__})()
    globals()["Queue"] = type("Queue", (), {"__module__": __name__})
    old.names = ["a"]
    copied = copier_of(old)()
    assert copied.names == ["a"]
    assert copied.names is not old.names
