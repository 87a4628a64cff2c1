"""The text of libyaml is almost always the text of OmegaConf's own dumper, and has the same content."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from composing import composed
from omegaconf import OmegaConf
from omegaconf._utils import OmegaConfDumper

from mmp.config import yaml_text as module
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.config.yaml_text import _dumped, _FastDumper, write_by_libyaml, yaml_text

STRINGS = [
    "yes",
    "1",
    "1e3",
    "0x1",
    "x: y",
    "- a",
    "# a",
    "é 日本",
    "a\nb",
    "",
    "null",
    "~",
    "${a.b}",
    "it's",
    "a" * 200,
]
JOBS = [
    (),
    ("model=vit", "reconstruct=joint"),
    ("criterion=lamp", "budget=0.9"),
    ("data=fashion_mnist", "finetune=strong"),
]


def plain(content: object) -> str:
    OmegaConfDumper.add_representer(str, OmegaConfDumper.str_representer)
    return _dumped(content, OmegaConfDumper)


@pytest.mark.parametrize("job", JOBS)
def test_configurations_are_written_with_the_same_text(job: tuple[str, ...]) -> None:
    cfg = composed(*job)
    assert OmegaConf.to_yaml(cfg) == plain(OmegaConf.to_container(cfg))
    config = asdict(validate(cfg, PruneConfig))
    assert yaml_text(config) == plain(OmegaConf.to_container(OmegaConf.create(config)))


def test_strings_that_look_like_other_values_are_quoted() -> None:
    content = {
        "a": STRINGS,
        "b": [{text: text} for text in STRINGS if text],
        "c": [None, True, 1, 1.5, 1e-8, float("inf"), [], {}],
    }
    assert yaml_text(content) == plain(content)
    assert "- 'yes'" in yaml_text(STRINGS)


@pytest.mark.parametrize("text", ["\U0001f600", "a\x85b", "\u2028"])
def test_strings_with_another_text_have_the_same_content(text: str) -> None:
    assert yaml.safe_load(yaml_text({text: [text]})) == {text: [text]}


def test_names_that_are_not_utf_8_are_written_by_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert name in yaml_text({"a": name}) or "udce9" in yaml_text({"a": name}).lower()
    set_dumper = list[object]()
    monkeypatch.setattr(module.omegaconf, "get_omega_conf_dumper", set_dumper)
    monkeypatch.setattr(sys, "argv", ["prune.py", f"paths.results={name}"])
    write_by_libyaml()
    assert module.omegaconf.get_omega_conf_dumper is set_dumper
    monkeypatch.setattr(sys, "argv", ["prune.py"])
    write_by_libyaml()
    assert module.omegaconf.get_omega_conf_dumper() is _FastDumper


def test_omegaconf_writes_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    composed()
    written = list[object]()
    monkeypatch.setattr(_FastDumper, "open", lambda self: written.append(self) or super(_FastDumper, self).open())
    OmegaConf.to_yaml(OmegaConf.create({"a": 1}))
    assert len(written) == 1
