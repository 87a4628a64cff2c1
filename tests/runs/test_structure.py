"""The groups of channels of a run: found once for an architecture, and read from the cache by all others."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed

from mmp.config.schema import PruneConfig, RuleConfig
from mmp.config.validate import validate
from mmp.models.networks import build_bare
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.patterns import Channels
from mmp.runs import structure as module
from mmp.runs.structure import structure_of


@pytest.fixture
def config(tmp_path: Path) -> PruneConfig:
    config = validate(composed("model=vit", "data=digits", "pattern=channels", "ranges=channels"), PruneConfig)
    config.paths.cache = str(tmp_path)
    return config


def groups_of(config: PruneConfig) -> WholeChannels:
    found = structure_of(config, build_bare(config.model), Channels())
    assert isinstance(found, WholeChannels)
    return found


def same(one: WholeChannels, other: WholeChannels) -> bool:
    return one.layers == other.layers and all(
        a.channels.keys() == b.channels.keys()
        and a.passed == b.passed
        and all(torch.equal(a.channels[part], b.channels[part]) for part in a.channels)
        for a, b in zip(one.groups, other.groups, strict=True)
    )


def test_groups_are_found_once_and_do_not_depend_on_the_weights(
    config: PruneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = groups_of(config)
    monkeypatch.setattr(module, "confirmed_groups", None)  # is not called again
    assert same(first, groups_of(config))


@pytest.mark.slow
def test_dimensions_of_heads_are_found_once_and_apart_from_heads(
    config: PruneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = groups_of(config)
    config.ranges.rules.append(RuleConfig(role=["attn_dims"], range=[0.0, 0.5]))
    first = groups_of(config)
    assert [layer.role for layer in first.layers] == ["attn_dims", "mlp_hidden"] * 2
    monkeypatch.setattr(module, "confirmed_groups", None)  # is not called again
    again = groups_of(config)
    assert same(first, again)
    for one, other in zip(first.groups, again.groups, strict=True):
        assert len(one.strands) == len(other.strands)
        for a, b in zip(one.strands, other.strands, strict=True):
            assert all(torch.equal(a.channels[part], b.channels[part]) for part in a.channels)
    config.ranges.rules.pop()
    assert same(heads, groups_of(config))


@pytest.mark.slow
def test_two_runs_at_the_same_time_find_the_groups_once(config: PruneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    find, calls = module.confirmed_groups, []

    def slow(*arguments: Any) -> list[ChannelGroup]:
        calls.append(time.sleep(0.3))
        return find(*arguments)

    monkeypatch.setattr(module, "confirmed_groups", slow)
    with ThreadPoolExecutor(2) as workers:
        first, second = workers.map(groups_of, [config, config])
    assert len(calls) == 1
    assert same(first, second)


@pytest.mark.slow
def test_a_damaged_file_is_replaced(config: PruneConfig, caplog: pytest.LogCaptureFixture) -> None:
    first = groups_of(config)
    (file,) = Path(config.paths.cache).glob("channels/*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        assert same(first, groups_of(config))
    assert "computing it again" in caplog.text
    assert file.read_bytes() == content


def test_other_architectures_have_files_of_their_own(config: PruneConfig) -> None:
    groups_of(config)
    config.model.kwargs = {**config.model.kwargs, "depth": 1}
    assert len(groups_of(config).groups) == 2
    assert len([*Path(config.paths.cache).glob("channels/*.safetensors")]) == 2
