"""Names of models: those of timm's registry, and a way out for names of the Hugging Face hub and of folders."""

from __future__ import annotations

from pathlib import Path

import timm
from timm.models import get_arch_pretrained_cfgs

import mmp.models.vgg  # noqa: F401 - registers the paper's VGG-11 with timm
from mmp.errors import MmpError, nearest
from mmp.files import read_json


def require_known(name: str) -> None:
    """Raise if timm has no model of this name.

    A name may end in a tag of pretrained weights, such as ``resnet18.a1_in1k``. Names of a hub or of a folder are
    refused: what they stand for may change without a change of the configuration.

    Raises:
        MmpError: with the nearest names, or with the settings that replace a name of a hub or a folder.
    """
    source, _, place = name.rpartition(":")
    if source.lower() == "local-dir":
        raise MmpError(f"model.name={name}: a folder is no name of a model; {_settings_for(Path(place))}")
    if source or "/" in name or "\\" in name:
        raise MmpError(f"model.name={name}: no name of timm's registry; {_settings_like(place)}")
    if not timm.is_model(name):
        raise MmpError(f"model.name={name}: timm has no such model; {nearest(name, timm.list_models())}")
    architecture, _, tag = name.partition(".")
    known = {full.partition(".")[2] for full in get_arch_pretrained_cfgs(name)} if tag else set()
    if tag and tag not in known:
        way_out = nearest(tag, known - {""}) if known - {""} else f"set model.name={architecture}"
        raise MmpError(f"model.name={name}: timm has no weights {tag!r} for {architecture}; {way_out}")


def _settings_like(place: str) -> str:
    """Return the settings that replace a name of the hub, such as ``timm/resnet18.a1_in1k@main``."""
    name = place.partition("@")[0].rstrip("/").rpartition("/")[2]
    if timm.is_model(name):
        return f"set model.name={name} and model.pretrained=true"
    return "download the weights, then set model.name to the architecture and model.pretrained_file to the file"


def _settings_for(folder: Path) -> str:
    """Return the settings that replace a folder in the hub's format."""
    content = read_json(folder / "config.json")
    name = content.get("architecture") if isinstance(content, dict) else None
    files = [path for path in map(folder.joinpath, ("model.safetensors", "pytorch_model.bin")) if path.is_file()]
    file = f"model.pretrained_file={files[0]}" if files else "model.pretrained_file to its file of weights"
    architecture = f"set model.name={name}" if name else "set model.name to its architecture"
    return f"{architecture} and {file}"
