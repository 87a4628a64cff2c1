"""Random settings: the whole check of a job ends in success or in an error of one line, never in another exception."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from composing import composed
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from override_lines import lines
from yaml import YAMLError

from mmp.config.choices import require_names
from mmp.config.command import quiet
from mmp.config.explain import explain
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.models.networks import fill_input
from mmp.runs.job import PruneJob

EXAMPLES = int(os.environ.get("MMP_FUZZ", "200"))  # CONTRIBUTING.md: more of them, and other ones, by hand


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder for the cache that all examples share."""
    quiet()
    with TemporaryDirectory() as folder:
        yield Path(folder)


def configuration(line: list[str]) -> DictConfig:
    """Return the configuration of a line, after the name of its run, as a command needs it for the folder."""
    cfg = composed(*line)
    with open_dict(cfg):
        cfg.hydra = {"run": {"dir": "${mmp.run_name:}"}}
    _ = cfg.hydra.run.dir
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check(line: list[str], folder: Path) -> str | None:
    """Check a job as ``mmp-prune`` does before it reads data; return the explanation if it is refused."""
    try:
        require_names(line)
        cfg = configuration([*line, f"paths.results={folder}"])
        config = validate(cfg, PruneConfig)
        fill_input(config)
        PruneJob.of(config, folder / "run")
    except MmpError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        return explain(error)
    return None


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    derandomize="MMP_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_settings_are_right_or_refused_in_one_line(data: st.DataObject, folder: Path) -> None:
    line = data.draw(lines(), "overrides")
    refusal = check(line, folder)
    note(str(refusal))
    assert refusal is None or (refusal.strip() and "\n" not in refusal and "\x1b" not in refusal)


@pytest.mark.slow
def test_the_check_accepts_and_refuses(folder: Path) -> None:
    assert check(["seed=1", "strategy=p50"], folder) is None
    assert "finetune.optimizer=adahessian" in str(check(["finetune.optimizer=adahessian"], folder))
