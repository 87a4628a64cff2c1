"""The survey of timm: one model of every architecture module, and every kind of defect is found."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from partly import partly_slow
from torch import nn

from mmp.config.choices import choices_of, choose
from mmp.config.schema import BudgetConfig, ModelConfig, PlanConfig
from mmp.config.validate import read_ranges
from mmp.errors import MmpError
from mmp.models.survey import OTHER_SHARE, by_module, examine, print_survey, problems_of
from mmp.plan import load_strategy, make_plan

SIZES = re.compile(r"atto|femto|pico|nano|micro|tiny|mini|small|xx?s\b|_xs|_s\b|_t\b|18|050|_0\d\d")


def config(name: str, style: str = "table") -> PlanConfig:
    ranges = read_ranges(choose("ranges", "generic"))
    return PlanConfig(model=ModelConfig(name=name), ranges=ranges, budget=BudgetConfig(), format=style)


@functools.cache
def one_per_module() -> list[str]:
    """Return one model of each of timm's modules; a small one, by its name, if there is one."""
    models = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        models.append(min(names, key=lambda name: (not SIZES.search(name), len(name), name)))
    return models


@pytest.fixture(scope="module")
def strategies() -> list[Any]:
    return [load_strategy(name) for name in choices_of("strategy")]


def test_the_survey_covers_timms_modules() -> None:
    assert len(one_per_module()) == len(set(one_per_module())) >= 98


@pytest.mark.parametrize("name", partly_slow(one_per_module(), quick=one_per_module()[::12]))
def test_every_module_of_timm_gets_a_plan(name: str, strategies: list[Any]) -> None:
    found = examine(name, config(name), strategies)
    assert found.problem == ""
    assert found.reason or found.largest_other <= OTHER_SHARE
    assert 0.0 < found.conservative < found.aggressive < 0.98


# --- defects that the survey finds ---


class Norm2d(nn.Conv2d):
    """A convolution that claims to be a norm."""


class Net(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.middle = nn.Conv2d(3, 40, 3), middle or nn.Conv2d(40, 40, 3)
        self.fc = nn.Linear(40, 10)
        self.default_cfg: dict[str, Any] = {}


def problems(model: nn.Module, **changes: Any) -> list[str]:
    return list(problems_of(replace(make_plan(model), **changes), model))


def test_a_good_plan_has_no_problem() -> None:
    assert problems(Net()) == []


def test_a_missing_layer_and_a_norm_are_found() -> None:
    model = Net()
    structure = make_plan(model).structure
    first = replace(structure, layers=structure.layers[:2])  # type: ignore[type-var]
    assert problems(model, structure=first) == ["fc is a Linear, but not a prunable layer"]
    assert problems(Net(Norm2d(40, 40, 3))) == ["middle is a Norm2d, but a prunable layer"]


def test_weights_outside_of_all_layers_are_found() -> None:
    model = Net()
    model.mix = nn.Parameter(torch.randn(100, 100))  # type: ignore[assignment]
    (problem,) = problems(model)
    assert "e.g. 'mix'" in problem


def test_a_shared_layer_is_not_missing() -> None:
    model = Net()
    model.again = model.fc  # type: ignore[assignment]
    assert problems(model) == []


def test_roles_that_contradict_timm_are_found() -> None:
    model = Net()
    model.default_cfg = {"classifier": "middle", "first_conv": "fc"}
    plan = make_plan(Net())
    assert list(problems_of(plan, model)) == [
        "timm's classifier middle has the role conv",
        "timm's first_conv fc has the role classifier",
    ]


def test_falling_strategies_and_emptied_layers_are_found() -> None:
    sparsities = {name: dict(layers) for name, layers in make_plan(Net()).sparsities.items()}
    sparsities["p70"]["fc.weight"] = 0.0
    sparsities["aggressive"]["conv1.weight"] = 1.0
    found = problems(Net(), sparsities=sparsities)
    assert found == ["fc.weight is sparser under p50 than under p70", "aggressive empties conv1.weight"]


def test_a_model_that_cannot_be_built_is_a_finding(strategies: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setattr("mmp.models.survey.build_skeleton", broken)
    assert examine("resnet18", config("resnet18"), strategies).problem == "RuntimeError: no such luck"


@pytest.mark.slow
def test_a_large_layer_without_a_reason_is_a_problem(strategies: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine("repghostnet_200", config("x"), strategies).problem == ""
    monkeypatch.setattr("mmp.models.survey.REASONS", ())
    assert examine("repghostnet_200", config("x"), strategies).problem == "a large layer of role other"


@pytest.mark.slow
def test_the_survey_is_printed_and_fails_if_a_model_does(
    strategies: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_survey(config("repghostnet_0*", "json"), strategies)
    output, errors = capsys.readouterr()
    found = json.loads(output)
    assert [line["model"] for line in found] == timm.list_models("repghostnet_0*")
    assert "0 with a problem" in errors
    print_survey(config("repghostnet_0*", "csv"), strategies)
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 1
    monkeypatch.setattr("mmp.models.survey.problems_of", lambda *_: iter(["all wrong"]))
    with pytest.raises(MmpError, match=rf"{len(found)} models have a problem; the first is \w+: all wrong"):
        print_survey(config("repghostnet_0*"), strategies)
    assert "all wrong" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_has_one_line_per_module(strategies: list[Any]) -> None:
    names = ["repghostnet_050", "repghostnet_200", "resnet18"]
    lines = by_module(examine(name, config(name), strategies) for name in names).splitlines()
    assert Counter(line.split(" | ")[1] for line in lines[2:]) == {"2": 1, "1": 1}
    assert "2.4 % (`blocks.8.1.se.conv_reduce.weight` of repghostnet_200)" in lines[2]


def test_our_own_models_are_not_part_of_the_survey(strategies: list[Any]) -> None:
    assert "vgg11_bn_small" in timm.list_models("vgg11*")
    with torch.device("meta"), pytest.raises(MmpError, match="no model"):
        print_survey(config("vgg11_bn_small*"), strategies)


def test_read_ranges_checks_as_a_command_does() -> None:
    with pytest.raises(MmpError, match=r"ranges\.source=guess: no such choice"):
        read_ranges(OmegaConf.create({"name": "x", "source": "guess"}))
