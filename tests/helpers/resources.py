"""Resources that some tests need and a machine may lack, each with the way to get it.

Two environment variables hold names of resources, separated by commas:

- ``MMP_TESTS_HIDE=data,browser,slurm`` runs the tests as a machine without these resources would.
- ``MMP_TESTS_REQUIRE=openvino,executorch`` ends the test run with an error where one of these is missing, so that no
  test is skipped unnoticed.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

import pytest
from slurm_cluster import Cluster

from mmp.data.readers import FASHION_MNIST_FOLDERS

CHROMIUM = os.environ.get("MMP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Resource:
    """Something outside the development environment.

    Attributes:
        title: Its name in a sentence.
        problem: Returns why it cannot be used here; empty if it can.
        way: How to get it.
    """

    title: str
    problem: Callable[[], str]
    way: str


def _data() -> str:
    return "" if FASHION_MNIST_FOLDERS[0].is_dir() else f"{FASHION_MNIST_FOLDERS[0]} does not exist"


def _browser() -> str:
    return "" if CHROMIUM else "no chromium on PATH, and MMP_CHROMIUM is not set"


def _mount() -> str:
    return "" if os.geteuid() == 0 and shutil.which("mount") else "only root can mount a file system"


def _package(name: str) -> Callable[[], str]:
    return lambda: "" if find_spec(name) else f"no package '{name}'"


RESOURCES = {
    "data": Resource("Fashion-MNIST", _data, "apt-get install dataset-fashion-mnist"),
    "browser": Resource("a browser", _browser, "apt-get install chromium"),
    "slurm": Resource(
        "Slurm",
        functools.cache(Cluster.unavailable),
        "run as root on a Linux with apt-get and namespaces; the tests install Slurm",
    ),
    "mount": Resource("a small disk", _mount, "run as root on a machine that may mount a tmpfs"),
    "openvino": Resource("OpenVINO", _package("openvino"), "pip install openvino"),
    "executorch": Resource("ExecuTorch", _package("executorch"), "pip install executorch"),
}


def hidden() -> set[str]:
    """Return the resources that tests must treat as missing."""
    return _named("MMP_TESTS_HIDE")


def required() -> set[str]:
    """Return the resources that may not be missing."""
    return _named("MMP_TESTS_REQUIRE")


def _named(variable: str) -> set[str]:
    names = set(filter(None, os.environ.get(variable, "").split(",")))
    if unknown := names - RESOURCES.keys():
        raise pytest.UsageError(f"{variable}={','.join(sorted(unknown))}: choose from {','.join(RESOURCES)}")
    return names


def lack(name: str) -> str:
    """Return why tests that need a resource are skipped, empty if they run."""
    problem = "hidden by MMP_TESTS_HIDE" if name in hidden() else RESOURCES[name].problem()
    return problem and f"needs {name}: {problem}"


def needs(name: str) -> pytest.MarkDecorator:
    """Mark tests that are skipped where a resource is missing."""
    return pytest.mark.skipif(bool(lack(name)), reason=lack(name))


def skip_without(name: str, problem: str) -> NoReturn:
    """Skip the current test because a resource turned out to be unusable; fail it if the resource is required."""
    reason = f"needs {name}: {problem}"
    if name in required():
        pytest.fail(reason)
    pytest.skip(reason)


def require() -> None:
    """Check that the required resources are there.

    Raises:
        pytest.UsageError: that names the missing ones and the ways to get them.
    """
    missing = [f"{lack(name)}; {RESOURCES[name].way}" for name in sorted(required()) if lack(name)]
    if missing:
        raise pytest.UsageError("MMP_TESTS_REQUIRE: " + ". ".join(missing))


def ways(reasons: Iterable[str]) -> list[str]:
    """Return one sentence per missing resource: how many tests were skipped without it, and how to get it.

    Args:
        reasons: Why tests were skipped; those that name no resource are left out.
    """
    found = [match[1] for reason in reasons if (match := re.match(r"(?:Skipped: )?needs (\w+): ", reason))]
    return [
        f"{found.count(name)} skipped for lack of {resource.title}: {resource.way}"
        for name, resource in RESOURCES.items()
        if name in found
    ]
