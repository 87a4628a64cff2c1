"""W&B without an account: offline runs of a sweep read back, and sweeps with a server that is slow, failing or down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import sweeping
import wandb_server
import warm
from composing import composed
from misbehaving import overrides
from omegaconf import OmegaConf
from sweeping import environment
from wandb_files import OfflineRun, offline_runs

import mmp.workspace
from mmp.config.identity import digest
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.report.wandb_summary import log_sweep
from mmp.runs import wandb_run
from mmp.training.trainer import check_config

pytestmark = pytest.mark.slow


def sweep(results: Path, variables: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep with the W&B logger, and with TensorBoard's if it is installed."""
    logger = "many" if find_spec("tensorboard") else "wandb"
    return sweeping.sweep(results, f"logger={logger}", *more, fresh=True, **variables)  # wandb does not survive a fork


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three jobs, the last of which fails; then a sweep with one of them again, and with a baseline."""
    folder, begin = tmp_path_factory.mktemp("offline"), time.monotonic()
    home = wandb_server.isolated(folder / "home")
    for axes in (["strategy=p30,p50,p90"], ["strategy=p30", "criterion=none,lamp"]):
        done = sweep(folder, home, *axes, *overrides(p90="raise"))
        assert done.returncode == 1, done.stdout + done.stderr  # the sweep has a failed run
        assert "W&B" not in done.stdout + done.stderr
    (folder / "seconds").write_text(str(time.monotonic() - begin))
    return folder


@pytest.fixture(scope="module")
def usual(results: Path) -> float:
    """The seconds of these two sweeps, which do not wait for a server."""
    return float((results / "seconds").read_text())


@pytest.fixture(scope="module")
def runs(results: Path) -> dict[str, OfflineRun]:
    found = offline_runs(results)
    assert len({run.name for run in found}) == len(found)
    return {run.name: run for run in found}


def result_of(results: Path, run: OfflineRun) -> dict[str, Any]:
    return json.loads((results / "sweeps" / "sweep" / run.id / "result.json").read_text())


def test_every_job_is_one_run_with_name_tags_and_group(runs: dict[str, OfflineRun]) -> None:
    assert list(runs) == ["lamp/p30/s0", "magnitude/p30/s0", "magnitude/p50/s0", "magnitude/p90/s0", "sweep/report"]
    assert {run.group for run in runs.values()} == {"sweep"}
    assert {run.project for run in runs.values()} == {"mmp"}
    assert [run.job_type for run in runs.values()] == ["prune"] * 4 + ["sweep"]
    assert runs["magnitude/p50/s0"].tags == ["cnn", "digits", "magnitude", "p50"]
    assert runs["lamp/p30/s0"].tags == ["cnn", "digits", "lamp", "p30"]
    for run in list(runs.values())[:4]:
        assert run.folder.parents[1].name == run.id  # in the folder of the run, whose name is its id


def test_a_run_has_its_settings_curves_and_summary(results: Path, runs: dict[str, OfflineRun]) -> None:
    run = runs["magnitude/p50/s0"]
    result = result_of(results, run)
    assert run.config["seed"] == 0
    assert run.config["strategy"]["name"] == "p50"
    assert run.config["finetune"]["epochs"] == 1
    assert run.curve("val/accuracy") == [result["accuracy"]["finetuned"]["validation"]]
    assert len(run.curve("train/loss")) == 1
    known = {"signal": "magnitude", "strategy": "p50", "model": "cnn", "data": "digits", "seed": 0}
    known |= {"sparsity": result["sparsity"], "accuracy": result["accuracy"]["finetuned"]["test"]}
    known |= {"drop": result["drop"], "size_mb": result["bytes"]["pruned"] / 1e6}
    assert {key: run.summary[key] for key in known} == pytest.approx(known)
    assert runs["lamp/p30/s0"].summary["signal"] == "lamp"
    columns = ("role", "lo", "hi", "sparsity", "pruned", "total")
    expected = [{"layer": layer["name"], **{key: layer[key] for key in columns}} for layer in result["layers"]]
    assert run.table("layers") == expected


def test_a_failed_job_is_a_failed_run(runs: dict[str, OfflineRun]) -> None:
    assert {name: run.exit_code for name, run in runs.items()} == {
        "lamp/p30/s0": 0,
        "magnitude/p30/s0": 0,
        "magnitude/p50/s0": 0,
        "magnitude/p90/s0": 1,
        "sweep/report": 1,
    }
    assert "accuracy" not in runs["magnitude/p90/s0"].summary
    assert runs["magnitude/p90/s0"].inputs == runs["magnitude/p50/s0"].inputs
    assert not runs["magnitude/p90/s0"].outputs


def test_artifacts_link_the_dense_model_scores_and_pruned_models(results: Path, runs: dict[str, OfflineRun]) -> None:
    first, second, lamp = (runs[name] for name in ("magnitude/p30/s0", "magnitude/p50/s0", "lamp/p30/s0"))
    dense, scores = second.inputs
    assert first.inputs == lamp.inputs == [dense]
    assert first.outputs == [scores, f"pruned-{first.id}", f"masks-{first.id}"]  # this run has computed the scores
    assert second.outputs == [f"pruned-{second.id}", f"masks-{second.id}"]
    assert lamp.outputs[0].startswith("scores-")
    assert lamp.outputs[0] != scores
    for name in (dense, scores):
        assert first.artifacts[name] == second.artifacts[name]  # W&B stores one artifact per name and digest
    assert [second.artifacts[name][0] for name in (dense, scores, *second.outputs)] == [
        "model", "scores", "model", "masks",
    ]  # fmt: skip
    folder = results / "sweeps" / "sweep" / second.id
    assert second.artifacts[f"pruned-{second.id}"][2] == {"model.safetensors": str(folder / "model.safetensors")}
    copies = [path for path in (results / "home").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert not copies  # files are not copied


def test_a_repeated_sweep_has_one_summary_run(results: Path, runs: dict[str, OfflineRun]) -> None:
    (run,) = [run for run in runs.values() if run.job_type == "sweep"]
    assert run.folder.parents[1] == results / "sweeps" / "sweep"
    assert run.id.startswith("sweep-sweep-")
    assert "criterion=none,lamp" in run.config["overrides"]
    report = results / "sweeps" / "sweep" / "report"
    (picture,), (page,) = run.curve("pareto.path"), run.curve("report.path")
    assert (run.folder / "files" / picture).read_bytes() == (report / "pareto.png").read_bytes()
    assert "<html" in (run.folder / "files" / page).read_text()
    rows = run.table("results")
    assert len(rows) == run.summary["runs"] == len((report / "results.csv").read_text().splitlines()) - 1
    assert run.summary["failed"] == 1
    accuracies = {row["folder"]: row["test"] for row in rows}
    for name in ("magnitude/p30/s0", "magnitude/p50/s0", "lamp/p30/s0"):
        result = result_of(results, runs[name])
        assert accuracies[runs[name].id] == pytest.approx(result["accuracy"]["finetuned"]["test"], abs=1e-4)


def test_one_command_uploads_an_offline_sweep_with_its_lineage(results: Path, runs: dict[str, OfflineRun]) -> None:
    folders = [*results.glob("sweeps/sweep/wandb/offline-run-*"), *results.glob("sweeps/sweep/*/wandb/offline-run-*")]
    with wandb_server.serving() as server:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *map(str, folders)], cwd=results, capture_output=True, text=True,
            check=False, timeout=warm.LIMIT, env=environment(**wandb_server.environment(server.url, results / "home")),
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(server.streams) == {run.id for run in runs.values()}
    uses = {(use["input"]["runName"], server.names[use["input"]["artifactID"]]) for use in server.called("UseArtifact")}
    assert uses == {(run.id, name) for run in runs.values() for name in run.inputs}
    (dense,) = {name for run in runs.values() for name in run.inputs if name.startswith("dense-")}
    assert [name for name, _ in server.artifacts].count(dense) == 1
    made = [call["input"] for call in server.called("CreateArtifact")]
    assert {call["runName"] for call in made if call["artifactCollectionName"] == dense} == {None}
    assert sum("pruned-" in path for path in server.uploads) == 3


def test_other_loggers_work_beside_wandb(results: Path, runs: dict[str, OfflineRun]) -> None:
    folder = results / "sweeps" / "sweep" / runs["magnitude/p50/s0"].id
    assert "val/accuracy" in (folder / "csv" / "metrics.csv").read_text()
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"val/accuracy", "train/loss", "final/accuracy"} <= set(events.Tags()["scalars"])


FOREVER = 3600.0  # seconds; longer than any test waits
SERVERS: dict[str, dict[str, Any] | None] = {
    "slow": {"delay": 0.1},
    "refusing": None,
    "failing": {"fails": 503},
    "hanging": {"delay": FOREVER},
    "hanging later": {"delay": FOREVER, "failing": "/file_stream"},
}
FAST = {"init_timeout": 3.0, "finish_timeout": 4.0}
# The job and the sweep's summary may each wait for both timeouts, ten seconds in wandb, and twenty for a lost server.
PATIENCE = 2 * (sum(FAST.values()) + 10 + 20)


@pytest.mark.parametrize("kind", SERVERS)
def test_no_server_changes_or_blocks_a_sweep(kind: str, results: Path, usual: float, tmp_path: Path) -> None:
    settings, healthy = SERVERS[kind], kind == "slow"
    timeouts = [f"logger.wandb.{key}={60 if healthy else seconds}" for key, seconds in FAST.items()]
    axes = ["strategy=p30", "logger.wandb.offline=false", f"paths.cache={results}/cache", *overrides(p90="raise")]
    with wandb_server.serving(**(settings or {})) as server:
        url = wandb_server.closed_port() if settings is None else server.url
        variables = {**wandb_server.environment(url, tmp_path / "home"), "WANDB_HTTP_TIMEOUT": "2"}
        begin = time.monotonic()
        done = sweep(tmp_path, variables, *axes, *timeouts)
        seconds = time.monotonic() - begin
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    (path,) = tmp_path.glob("sweeps/sweep/cnn-*/result.json")
    ours = json.loads(path.read_text())
    theirs = json.loads((results / "sweeps" / "sweep" / path.parent.name / "result.json").read_text())
    assert (ours["accuracy"], ours["masks_hash"]) == (theirs["accuracy"], theirs["masks_hash"])
    assert healthy or seconds < usual + PATIENCE
    if kind in ("refusing", "failing", "hanging"):  # nothing is lost, and only one run tries the server
        assert {run.id for run in offline_runs(tmp_path)} > {path.parent.name}
        assert output.count("W&B does not answer") == 1
    if kind == "hanging":
        assert ours["seconds"]["loggers"] > 0.9 * FAST["init_timeout"]  # not included in the total
    if healthy:
        assert set(server.streams) > {path.parent.name}
        assert server.streams[path.parent.name][-1]["exitcode"] == 0
        titles = {call["name"]: call["displayName"] for call in server.called("UpsertBucket") if call["displayName"]}
        assert titles[path.parent.name] == "magnitude/p30/s0"
        assert len(server.called("UseArtifact")) == 2
        assert len({path for path in server.uploads if path.startswith("dense-")}) == 1


# --- in this process ---


@pytest.mark.parametrize("failing", [False, True])
def test_an_earlier_summary_is_removed_only_after_a_new_one_is_written(
    failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"sweep-{tmp_path.name}-{digest(str(tmp_path.resolve()))[:8]}"
    earlier = tmp_path / "wandb" / f"offline-run-20260101_000000-{key}"
    earlier.mkdir(parents=True)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.csv").write_text("name\np30\n")
    (tmp_path / "report" / "index.html").write_text("<html></html>")
    seen: list[bool] = []

    def begin(**arguments: Any) -> Any:
        assert arguments["id"] == key
        if failing:
            raise OSError("no space left")
        run = MagicMock()
        run.experiment.finish = lambda **_: seen.append(earlier.is_dir())
        return run

    monkeypatch.setattr(wandb_run, "WandbRun", begin)
    node = {"_target_": "mmp.runs.wandb_run.WandbRun", "offline": True}
    config = OmegaConf.create({"logger": {"wandb": node}, "hydra": {"overrides": {"task": []}}})
    log_sweep(config, tmp_path, 0)
    assert (earlier.is_dir(), seen) == ((True, []) if failing else (False, [True]))


def test_a_run_goes_offline_also_if_the_failure_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(mode: str | None, **_: Any) -> str:
        if mode is None:
            raise TimeoutError
        return mode

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setattr("wandb.teardown", lambda: None)
    assert wandb_run._open(tmp_path / "no such sweep" / "run", False, {}) == "offline"


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["signal=product", "strategy=p70", "seed=2"], "product/p70/s2"),
        (["criterion=lamp", "strategy=p70"], "lamp/p70/s0"),
        (["criterion=lamp", "budget=0.9"], "lamp/0.9/s0"),
        (["criterion=lamp", "budget.megabytes=0.5"], "lamp/0.5MB/s0"),
        (["allocation=searched"], "magnitude/searched/s0"),
    ],
)
def test_runs_are_named_by_signal_strategy_and_seed(overrides: list[str], title: str) -> None:
    config = composed("logger=wandb", "sweep=mine", *overrides)
    assert config.logger.wandb.name == title
    assert config.logger.wandb.group == "mine"


def test_a_missing_package_is_reported_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(composed("logger=tensorboard", f"paths.results={tmp_path}"))
    monkeypatch.setattr("mmp.training.trainer.find_spec", lambda _: None)
    with pytest.raises(MmpError, match=r"logger\.tensorboard needs .* pip install tensorboard, or .*logger=csv"):
        check_config(config, tmp_path)


def test_the_saved_view_has_the_panels_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    assert mmp.workspace.main(["me", "--group", "demo", "--dry-run"]) == 0
    view = json.loads(capsys.readouterr().out)
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    kinds = {section["name"]: [panel["viewType"] for panel in section["panels"]] for section in sections}
    scatter, parallel = "Scatter Plot", "Parallel Coordinates Plot"
    assert kinds["Sweep"] == [scatter, scatter, parallel, "Media Browser", "Weave"]
    text = json.dumps(view)
    assert '"xAxis": "summary:sparsity"' in text
    assert '"demo"' in text


def test_a_missing_views_package_is_reported_with_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmp.workspace.find_spec", lambda _: None)
    assert mmp.workspace.main(["me"]) == 1
    assert "pip install wandb-workspaces" in capsys.readouterr().err
