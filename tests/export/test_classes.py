"""The names of classes, from the folders of images to the files of an export, in the order of the logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import warm
from PIL import Image
from sweeping import environment

from mmp.data.module import ImageData
from mmp.export.card import FIRST, MOST_CLASSES, class_lines
from mmp.export.result import ExportResult
from mmp.export.source import completed_result, load_config
from mmp.export.targets.onnx_fp32 import CLASSES
from mmp.runs.store import RESULT, RunFolder

LEVELS = {"2": 20, "a": 128, "10": 235}  # the grey level of each folder's images; not in the order of the names
ORDER = ["10", "2", "a"]  # the order of the labels: names are sorted as text, not as numbers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on images whose class is their brightness, exported to three targets."""
    root, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for name, level in LEVELS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray((level + noise.integers(-15, 15, (16, 16))).astype(np.uint8)).save(folder / f"{i}.png")
    results = root / "results"
    data = [
        "data=imagefolder", f"data.root={root}", "data.classes=3", "data.channels=1", "data.image_size=16",
        "data.mean=[0.5]", "data.std=[0.3]", "data.augment=null", "data.calibration=0.1", "data.workers=0",
        "data.batch_size=16", "dense.epochs=12", "finetune.epochs=2", "budget=0.5", "logger=none",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    done = warm.run(["prune.py", f"paths.results={results}", *data], environment())
    assert done.returncode == 0, done.stderr
    (folder,) = results.glob("runs/*")
    done = warm.run(["-m", "mmp.export", str(folder), "target=onnx,onnx_int8,sparse", "seconds=0"], environment())
    assert done.returncode == 0, done.stderr
    return folder


def exported(run: Path, target: str) -> tuple[ExportResult, str]:
    """Return the result and the card of an export."""
    folder = run / "export" / target
    return ExportResult.from_dict(json.loads((folder / "export.json").read_text())), (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "onnx_int8"])
def test_the_largest_logit_names_the_folder_of_an_image(run: Path, target: str) -> None:
    config = load_config(run)
    session = onnxruntime.InferenceSession(run / "export" / target / "model.onnx")
    named = json.loads(session.get_modelmeta().custom_metadata_map[CLASSES])
    result, card = exported(run, target)
    assert named == result.classes == json.loads((run / RESULT).read_text())["classes"] == ORDER
    rows = [line for line in card.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert rows == ["| 0 | 10 |", "| 1 | 2 |", "| 2 | a |"]
    root = Path(config.data.root)
    for name in LEVELS:
        levels = [np.asarray(Image.open(path), dtype=np.float32) for path in sorted((root / "test" / name).iterdir())]
        images = (np.stack(levels)[:, None] / 255 - np.float32(0.5)) / np.float32(0.3)
        (logits,) = session.run(None, {"images": images})
        assert {named[output] for output in logits.argmax(1)} == {name}


@pytest.mark.slow
def test_a_sparse_export_has_the_names_and_the_data_set_the_same(run: Path) -> None:
    result, card = exported(run, "sparse")
    assert result.classes == ORDER
    assert "| 2 | a |" in card
    data = ImageData(load_config(run).data, 0)
    assert list(data.class_names) == ORDER
    images, labels = next(iter(data.test_dataloader()))
    means = {ORDER[label]: images[labels == label].mean() for label in range(3)}
    assert means["2"] < means["a"] < means["10"]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_exported_without_names(run: Path) -> None:
    content = json.loads((run / RESULT).read_text())
    try:
        (run / RESULT).write_text(json.dumps({key: value for key, value in content.items() if key != "classes"}))
        done = warm.run(["-m", "mmp.export", str(run), "target=onnx", "seconds=0", "force=true"], environment())
        assert done.returncode == 0, done.stderr
    finally:
        (run / RESULT).write_text(json.dumps(content))
    result, card = exported(run, "onnx")
    assert result.classes is None
    assert "The names of the 3 classes are unknown" in card
    assert not onnx.load(run / "export" / "onnx" / "model.onnx").metadata_props


@pytest.mark.slow
@pytest.mark.parametrize("names", ["cat", [], [1, 2, 3], {"a": 1}])
def test_names_that_are_no_list_of_text_are_refused(run: Path, tmp_path: Path, names: object) -> None:
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((run / RESULT).read_text())
    (tmp_path / RESULT).write_text(json.dumps({**content, "classes": names}))
    with pytest.raises(Exception, match="must be a list of names"):
        completed_result(RunFolder(tmp_path))


class Stub:
    """An export with nothing but classes."""

    def __init__(self, names: list[str] | None, outputs: int) -> None:
        self.classes, self.model = names, {"num_classes": outputs}


@pytest.mark.parametrize("count", [2, MOST_CLASSES, MOST_CLASSES + 1, 1000])
def test_a_card_lists_few_classes_and_the_first_of_many(count: int) -> None:
    lines = "\n".join(class_lines(Stub([f"class {i}" for i in range(count)], count))).splitlines()
    rows = [line for line in lines if line.startswith("| ") and line[2].isdigit()]
    listed = count if count <= MOST_CLASSES else FIRST
    assert rows == [f"| {i} | class {i} |" for i in range(listed)]
    assert ("export.json" in lines[0]) == (count > MOST_CLASSES)


def test_special_characters_in_names_do_not_break_the_card() -> None:
    odd = ["a|b", "two\nlines", "`code`", "<b>", "Ä ö", "[link](x)"]
    rows = "\n".join(class_lines(Stub(odd, len(odd)))).splitlines()[-len(odd) :]
    assert rows[0] == r"| 0 | a\|b |"
    assert rows[1] == "| 1 | two lines |"
    assert all(row.startswith(f"| {i} |") for i, row in enumerate(rows))
