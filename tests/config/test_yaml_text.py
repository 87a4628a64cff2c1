"""The text of libyaml is the text of OmegaConf's own dumper."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from composing import composed
from omegaconf import OmegaConf
from omegaconf._utils import OmegaConfDumper

from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.config.yaml_text import _FastDumper, yaml_text

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
    return yaml_text(content, OmegaConfDumper)


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


def test_omegaconf_writes_by_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    composed()
    written = list[object]()
    monkeypatch.setattr(_FastDumper, "open", lambda self: written.append(self) or super(_FastDumper, self).open())
    OmegaConf.to_yaml(OmegaConf.create({"a": 1}))
    assert len(written) == 1
