"""Names of models: tags of timm, and the way out for names of a hub or a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmp.errors import MmpError
from mmp.models.names import require_known


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "vgg11_bn_small"])
def test_names_of_timm_are_known_with_and_without_a_tag(name: str) -> None:
    require_known(name)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", "set model.name=resnet18.a1_in1k and model.pretrained=true"),
        ("hf_hub:timm/resnet18.a1_in1k", "set model.name=resnet18.a1_in1k and model.pretrained=true"),
        ("HF-HUB:timm/resnet18.a1_in1k@v2", "set model.name=resnet18.a1_in1k and model.pretrained=true"),
        ("timm/resnet18.a1_in1k", "set model.name=resnet18.a1_in1k and model.pretrained=true"),
        (
            "hf-hub:me/flowers",
            "download the weights, then set model.name to the architecture and model.pretrained_file",
        ),
        ("ftp:resnet18", "set model.name=resnet18 and"),
        ("hf-hub:", "download the weights"),
        ("local-dir:/nowhere", "set model.name to its architecture and model.pretrained_file to its file"),
        ("resnet18.a1_in2k", "timm has no weights 'a1_in2k' for resnet18; did you mean 'a1_in1k'"),
        ("vgg11_bn_small.paper", "timm has no weights 'paper' for vgg11_bn_small"),
        ("resnet19", "timm has no such model; did you mean 'resnet1"),
        ("", "timm has no such model"),
    ],
)
def test_other_names_are_refused_with_a_way_out(name: str, way_out: str) -> None:
    with pytest.raises(MmpError) as caught:
        require_known(name)
    assert str(caught.value).startswith(f"model.name={name}: ")
    assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_hub_is_replaced_by_its_architecture_and_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MmpError) as caught:
        require_known(f"local-dir:{tmp_path}")
    settings = f"set model.name=resnet18 and model.pretrained_file={tmp_path / 'model.safetensors'}"
    assert settings in str(caught.value)
