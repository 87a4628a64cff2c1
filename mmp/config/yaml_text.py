"""YAML by libyaml, as OmegaConf writes it: almost always the same text, in a third of the time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import omegaconf
from omegaconf._utils import OmegaConfDumper, get_omega_conf_dumper


class _FastDumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]  # PyYAML may be built without libyaml
    """OmegaConf's dumper, with libyaml's emitter."""


_FastDumper.add_representer(str, OmegaConfDumper.str_representer)


def write_by_libyaml() -> None:
    """Let OmegaConf, and through it Hydra and Lightning, write YAML by libyaml.

    It cannot write names of files that are not UTF-8, so if this process has one, OmegaConf writes by itself.
    """
    if _is_unicode("\n".join([str(Path.cwd()), *sys.argv, *os.environ.values()])):
        omegaconf.get_omega_conf_dumper = lambda: _FastDumper


def yaml_text(content: Any) -> str:
    """Return plain data as YAML, with the text of ``OmegaConf.to_yaml``."""
    try:
        return _dumped(content, _FastDumper)
    except UnicodeEncodeError:
        return _dumped(content, get_omega_conf_dumper())


def _dumped(content: Any, dumper: Any) -> str:
    text: str = yaml.dump(content, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=dumper)
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
