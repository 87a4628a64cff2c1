"""Missing resources of tests: the summary says how to get them, and a required one is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import resources
from places import ROOT

from mmp.data import readers

TESTS = """
from resources import needs, skip_without

@needs("data")
def test_images(): ...

@needs("browser")
def test_page(): ...

@needs("browser")
def test_another_page(): ...

def test_full_disk():
    skip_without("mount", "the mount failed")
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs ``TESTS`` on a machine that seems to have every resource."""
    present = {name: dataclasses.replace(one, problem=lambda: "") for name, one in resources.RESOURCES.items()}
    monkeypatch.setattr(resources, "RESOURCES", present)
    monkeypatch.setattr(readers, "FASHION_MNIST_FOLDERS", readers.FASHION_MNIST_FOLDERS)  # restored, if runs hide data
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(TESTS)

    def run(**variables: str) -> pytest.RunResult:
        for name in ("HIDE", "REQUIRE"):
            monkeypatch.setenv(f"MMP_TESTS_{name}", variables.get(name, ""))
        return pytester.runpytest_inprocess("-ra")

    return run


def test_the_last_lines_say_how_to_get_what_is_missing(run: Run) -> None:
    done = run(HIDE="browser,data,slurm")
    done.assert_outcomes(skipped=4)
    assert done.outlines[-4:-1] == [
        "1 skipped for lack of Fashion-MNIST: apt-get install dataset-fashion-mnist",
        "2 skipped for lack of a browser: apt-get install chromium",
        "1 skipped for lack of a small disk: run as root on a machine that may mount a tmpfs",
    ]
    done.stdout.fnmatch_lines(["SKIPPED * needs data: hidden by MMP_TESTS_HIDE"])


def test_a_machine_with_every_resource_gets_no_advice(run: Run) -> None:
    done = run(REQUIRE="data,browser")
    done.assert_outcomes(passed=3, skipped=1)
    done.stdout.no_fnmatch_line("*chromium*")


def test_a_required_resource_that_is_missing_ends_the_run(run: Run) -> None:
    done = run(HIDE="executorch,data", REQUIRE="openvino,executorch")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*MMP_TESTS_REQUIRE: needs executorch: hidden*; pip install executorch"])


def test_a_required_resource_that_proves_unusable_fails_its_test(run: Run) -> None:
    done = run(REQUIRE="mount")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(["*needs mount: the mount failed*"])


@pytest.mark.parametrize("variable", ["HIDE", "REQUIRE"])
def test_an_unknown_resource_is_named(variable: str, run: Run) -> None:
    done = run(**{variable: "data,chrome"})
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"*MMP_TESTS_{variable}=chrome: choose from data,browser,slurm,*"])
