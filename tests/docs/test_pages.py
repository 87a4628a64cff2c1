"""The code in the pages: Python blocks run, plans are printed, and other commands are valid configurations."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import warm
from composing import composed, files
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from places import ROOT
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from mmp.config.validate import validate
from mmp.pruning.patterns import Channels

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMPLETE = ("README.md", "docs/own-model.md", "docs/own_networks.md", "docs/choices.md", "docs/channels.md")
RUNNING = [ROOT / page for page in COMPLETE]  # their Python needs nothing else
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    parser = CodeBlockParser(language=language, evaluator=lambda _: None)
    return [example.parsed for example in Document.parse(str(page), parser).examples()]


def commands() -> Iterator[tuple[Path, str]]:
    """Yield each command of each page, without its comment and the variables before it."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield page, shlex.join(words)


def starting_with(*programs: str) -> list[pytest.param]:
    """Return the pages and the arguments of the commands that start one of these programs."""
    found = [(page, shlex.split(command)) for page, command in commands()]
    return [
        pytest.param(page, words[1:], id=f"{page.stem}: {shlex.join(words)}")
        for page, words in found
        if words[0] in programs
    ]


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows: blocks with their path in a comment, such as ``# conf/signal/mine.yaml``."""
    for block in [*blocks(page, "yaml"), *blocks(page, "python")]:
        if name := re.search(r"^# ([\w/]+\.(?:yaml|py))$", block, re.MULTILINE):
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)


def first_values(overrides: list[str]) -> list[str]:
    """Return the overrides of the first job of a sweep."""
    options = GlobalHydra.instance().config_loader().get_group_options
    single = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.is_sweep_override():
            single.append(override.input_line)
        elif isinstance(glob := override.value(), Glob):
            single.append(f"{override.key_or_group}={glob.filter(options(override.key_or_group))[0]}")
        else:
            single.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
    return single


# The networks that pages name, but narrower or for smaller images.
SMALLER: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [64, 96, 128, 192]},
    "mobilenetv3_small_100": {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **SMALLER.get(name, {})))
    write_files(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    document = Document.parse(str(page), PythonCodeBlockParser())
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()
    if budget := re.search(r"mmp\.prune\(.*budget=([\d.]+)", document.text):
        result = document.namespace["result"]
        whole = isinstance(result.plan.pattern, Channels)
        reached = result.plan.summary(result.strategy)["sparsity_all" if whole else "sparsity"]
        assert -1e-6 < reached - float(budget[1]) < (0.01 if whole else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "arguments"), starting_with("mmp-plan"))
def test_plans_are_printed(page: Path, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "docs/images").mkdir(parents=True)
    write_files(page, tmp_path)
    done = warm.run(["-m", "mmp.plan", *arguments], os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conservative" in done.stdout


@pytest.mark.parametrize(("page", "arguments"), starting_with("mmp-prune", "mmp-train"))
def test_runs_are_valid_configurations(
    page: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    write_files(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [argument for argument in arguments if argument != "-m"]
    if any(override.startswith("match=") for override in overrides):
        overrides.append("criterion=mag")  # the command adds all criteria as an axis
    kind = "train" if "mmp-train" in request.node.name else "prune"
    with files():
        if (tmp_path / "conf").is_dir():
            config = compose(kind, [*first_values(overrides), f"hydra.searchpath=[file://{tmp_path}/conf]"])
        else:
            config = composed(*first_values(overrides), name=kind)
        assert validate(config).model.title


def test_other_commands_exist() -> None:
    found = list(commands())
    for _, command in found:
        program, *arguments = shlex.split(command)
        if program.startswith("mmp-"):
            assert program in SCRIPTS, command
        if program == "python" and arguments[:2] != ["-m", "pytest"]:
            assert arguments[0] == "-m", command
            assert (ROOT / arguments[1].replace(".", "/")).with_suffix(".py").is_file(), command
    assert len(found) > 50


def test_named_files_exist() -> None:
    """Files of the repository that pages name in code, such as `mmp/pruning/ranges.py`, are there."""
    folders = "mmp|callbacks|conf|tests|benchmarks|hydra_plugins"
    named = re.compile(rf"(?<![\w./])((?:{folders})/[\w/.-]+\.(?:py|yaml|jsonl|sh))")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        shown = {path for block in blocks(page, "yaml") for path in named.findall(block)}  # files of the reader
        for path in set(named.findall(page.read_text())) - shown:
            assert (ROOT / path).is_file(), f"{name_of(page)}: {path}"
