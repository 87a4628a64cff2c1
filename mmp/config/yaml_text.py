"""YAML by libyaml, as OmegaConf writes it: almost always the same text, in a third of the time."""

from __future__ import annotations

from typing import Any

import yaml
from omegaconf import omegaconf
from omegaconf._utils import OmegaConfDumper


class _FastDumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]  # PyYAML may be built without libyaml
    """OmegaConf's dumper, with libyaml's emitter."""


_FastDumper.add_representer(str, OmegaConfDumper.str_representer)


def write_by_libyaml() -> None:
    """Let OmegaConf, and through it Hydra and Lightning, write YAML by libyaml."""
    omegaconf.get_omega_conf_dumper = lambda: _FastDumper


def yaml_text(content: Any, dumper: Any = _FastDumper) -> str:
    """Return plain data as YAML, with the text of ``OmegaConf.to_yaml``."""
    text: str = yaml.dump(content, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=dumper)
    return text
