"""Bad input on the command line, in real processes: one clear line, exit code 1, and no unfinished files."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from places import ROOT
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

QUICK = ["dense.epochs=1", "finetune.epochs=1"]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run([script, *arguments], {**os.environ, "OMP_NUM_THREADS": "1", **environment})


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error line of a failed command."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``train.py``, whose dense CNN other runs use."""
    folder = tmp_path_factory.mktemp("dense")
    done = run(
        "train.py",
        "dense.epochs=1",
        "dense.warmup_epochs=0",
        f"hydra.run.dir={folder}",
        f"paths.results={folder}/results",
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_training_reports_test_accuracy_and_saves_its_weights(dense: Path) -> None:
    result = json.loads((dense / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["samples"]["test"] == 360
    assert 0 < result["accuracy"]["dense"]["test"] <= 1
    assert sum(v.numel() for n, v in load_file(dense / "model.safetensors").items() if "running" not in n) > 500_000


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["strategy=balnced"], ["strategy=balnced", "'balanced'"]),
        (["finetune.learning_rte=1"], ["finetune.learning_rte", "'learning_rate'"]),
        (["budget=1.2"], ["budget=1.2"]),
        (["finetune.optimizer=adamm"], ["adamm", "'adam'"]),
        (["model=timm", "model.name=resnet19"], ["resnet19", "'resnet18'"]),
        (["schedule=one_shot", "schedule.epoch=99"], ["epoch 99", "finetune.epochs"]),
        (["data=fashion_mnist", "data.root=/nowhere/at/all"], ["/nowhere/at/all", "apt-get install"]),
        (["ranges=observed", "ranges.criteria=[mag,snipp]"], ["snipp", "'snip'"]),
        (["ranges=swin"], ["ranges=swin", "matches no layer", "ranges=generic"]),
        (["budget=0.99"], ["budget=0.99", "out of reach", "balanced"]),
        (["+strategy.groups={lat: 1.0}"], ["'lat'", "'late'"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_before_anything_is_trained(
    overrides: list[str], parts: list[str], tmp_path: Path
) -> None:
    line = error_line(run("prune.py", *overrides, f"paths.results={tmp_path}"))
    for part in parts:
        assert part in line
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("script", "mistake", "part"),
    [
        ("prune.py", "modle=cnn", "did you mean 'model'"),
        ("train.py", "modle=cnn", "did you mean 'model'"),
        ("prune.py", "budget=2", "budget"),
        ("train.py", "dense.epochs=0", "dense.epochs"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_without_importing_torch(
    script: str, mistake: str, part: str, tmp_path: Path
) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '{mistake}', 'paths.results={tmp_path}']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "finally: print({'torch', 'timm', 'pytorch_lightning'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert part in error_line(done)
    assert done.stdout == "set()\n"


def test_a_truncated_data_file_is_named(tmp_path: Path) -> None:
    for stem, head, count in (("train", "t", 50), ("t10k", "t", 20)):
        images = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28)) + bytes(count * 784)
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        assert head
    broken = tmp_path / "train-images-idx3-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    line = error_line(
        run("prune.py", "data=fashion_mnist", f"data.root={tmp_path}", f"paths.results={tmp_path}/results")
    )
    assert str(broken) in line
    assert "truncated" in line


def test_bad_checkpoints_are_refused_and_leave_no_unfinished_files(dense: Path, tmp_path: Path) -> None:
    good = dense / "model.safetensors"
    nan = load_file(good)
    nan["fc.weight"][0, 0] = torch.nan
    save_file(nan, tmp_path / "nan.safetensors")
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:5000])

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Payload()}, tmp_path / "evil.ckpt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"state_dict": Payload()}))
    cases = {
        "model=vit": (good, "not a checkpoint of this model"),
        "model=cnn": (tmp_path / "nan.safetensors", "'fc.weight' holds NaN"),
        "seed=0": (tmp_path / "short.safetensors", "not a readable safetensors file"),
        "seed=1": (tmp_path / "evil.ckpt", "cannot be read: it would call posix.mkdir; nothing was executed"),
        "seed=2": (tmp_path / "evil.pkl", "not a checkpoint: it is a pickle that torch.save did not write"),
        "seed=3": (tmp_path / "missing.safetensors", "no such file"),
    }
    for i, (override, (checkpoint, reason)) in enumerate(cases.items()):
        folder = tmp_path / f"run{i}"
        done = run(
            "prune.py",
            override,
            f"model.checkpoint={checkpoint}",
            f"hydra.run.dir={folder}",
            f"paths.results={tmp_path}",
        )
        line = error_line(done)
        assert str(checkpoint) in line
        assert reason in line
        assert json.loads((folder / "status.json").read_text())["status"] == "failed"
        assert not list(folder.glob("*.safetensors"))
    assert not (tmp_path / "executed").exists()


def test_a_loss_that_becomes_nan_is_an_error_with_a_traceback_on_request(dense: Path, tmp_path: Path) -> None:
    arguments = [
        f"model.checkpoint={dense / 'model.safetensors'}",
        f"hydra.run.dir={tmp_path}",
        f"paths.results={tmp_path}/results",
        "finetune.learning_rate=1e30",
        "finetune.optimizer=sgd",
        "finetune.scheduler=none",
        *QUICK,
    ]
    line = error_line(run("prune.py", *arguments, HYDRA_FULL_ERROR="0"))
    assert "lower the learning rate" in line
    result = json.loads((tmp_path / "status.json").read_text())
    assert result["status"] == "failed"
    assert "learning rate" in result["error"]["message"]
    assert not (tmp_path / "model.safetensors").exists()
    assert "Traceback" in run("prune.py", *arguments, HYDRA_FULL_ERROR="1").stderr


@pytest.mark.parametrize("key", ["hydra.run.dir", "paths.cache"])
def test_a_folder_that_cannot_be_written_is_named(key: str, tmp_path: Path) -> None:
    # Root may write anywhere, but cannot create a folder inside a file.
    (tmp_path / "file").write_text("in the way")
    line = error_line(run("prune.py", f"paths.results={tmp_path}/results", f"{key}={tmp_path}/file/below", *QUICK))
    assert f"{tmp_path}/file" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_interrupted_run_resumes_and_a_completed_one_is_skipped(dense: Path, tmp_path: Path) -> None:
    shared = [f"model.checkpoint={dense / 'model.safetensors'}", f"paths.results={tmp_path}", "finetune.epochs=3"]
    whole = run("prune.py", *shared, f"hydra.run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr

    # A process that is killed after its second epoch leaves a status and a checkpoint, but no result.
    script = (
        "import os\n"
        "from mmp.commands import prune_task\n"
        "from callbacks.pruning import MaskPruning\n"
        "def kill(self, trainer, *_):\n"
        "    if trainer.current_epoch == 2: os._exit(9)\n"
        "MaskPruning.on_train_batch_end = kill\n"
        "prune_task()\n"
    )
    (tmp_path / "killed.py").write_text(script)
    arguments = [*shared, f"hydra.run.dir={tmp_path}/killed", f"--config-path={ROOT / 'conf'}"]
    killed = run(str(tmp_path / "killed.py"), *arguments, PYTHONPATH=str(ROOT))
    assert killed.returncode == 9, killed.stderr
    assert json.loads((tmp_path / "killed" / "status.json").read_text())["status"] == "running"
    assert (tmp_path / "killed" / "checkpoints" / "last.ckpt").is_file()

    resumed = run("prune.py", *shared, f"hydra.run.dir={tmp_path}/killed")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "killed" / "checkpoints").exists()
    assert "already completed" in run("prune.py", *shared, f"hydra.run.dir={tmp_path}/killed").stdout


def test_a_logger_that_fails_does_not_stop_the_run(dense: Path, tmp_path: Path) -> None:
    done = run(
        "prune.py",
        f"model.checkpoint={dense / 'model.safetensors'}",
        f"hydra.run.dir={tmp_path}",
        f"paths.results={tmp_path}/results",
        "+logger.broken._target_=pytorch_lightning.loggers.CSVLogger",
        "+logger.broken.save_dir=/proc/nowhere",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    assert "logger 'broken' failed and is switched off" in done.stdout
    assert (tmp_path / "csv" / "metrics.csv").is_file()


def test_a_completed_result_survives_a_later_mistake(dense: Path, tmp_path: Path) -> None:
    shared = ["-m", f"model.checkpoint={dense / 'model.safetensors'}", f"paths.results={tmp_path}", *QUICK]
    assert run("prune.py", *shared, "strategy=p50").returncode == 0
    (path,) = tmp_path.rglob("sweep/*/result.json")
    before = path.read_bytes()
    # The number of workers is not part of a run's identity, so this is the same folder.
    done = run("prune.py", *shared, "strategy=p50", "data.workers=-1")
    assert done.returncode == 1
    assert path.read_bytes() == before
    assert "data.workers=-1" in json.loads(path.with_name("status.json").read_text())["error"]["message"]
    done = run("prune.py", *shared, "strategy=p50")
    assert done.returncode == 0, done.stderr
    assert "already completed" in done.stdout
    assert path.read_bytes() == before
    assert json.loads(path.with_name("status.json").read_text())["status"] == "skipped"


def test_changed_data_and_a_damaged_checkpoint_are_detected(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def add(first: int, last: int) -> None:
        for label, colour in (("dark", 60), ("light", 190)):
            folder = tmp_path / "images" / "train" / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(first, last):
                pixels = generator.integers(colour - 60, colour + 60, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")

    add(0, 40)
    arguments = ["data=imagefolder", f"data.root={tmp_path}/images", "data.classes=2", "data.workers=0", *QUICK]
    arguments += ["data.batch_size=16", f"paths.results={tmp_path}", f"hydra.run.dir={tmp_path}/run"]
    assert run("prune.py", *arguments).returncode == 0
    result = tmp_path / "run" / "result.json"
    first = json.loads(result.read_text())
    assert "already completed" in run("prune.py", *arguments).stdout
    add(40, 50)
    done = run("prune.py", *arguments)
    assert done.returncode == 0, done.stderr
    second = json.loads(result.read_text())
    assert first["samples"]["test"] == 16
    assert second["samples"]["test"] == 20

    # The same run, as if it had been killed while it wrote its checkpoint.
    result.unlink()
    (tmp_path / "run" / "checkpoints").mkdir()
    owner = {key: second[key] for key in ("identity", "data_fingerprint")}
    (tmp_path / "run" / "checkpoints" / "owner.json").write_text(json.dumps(owner))
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"PK half a checkpoint")
    done = run("prune.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "checkpoints is damaged" in done.stdout
    third = json.loads(result.read_text())
    assert third["accuracy"] == second["accuracy"]
    assert (tmp_path / "run" / "csv" / "metrics-1.csv").is_file()
