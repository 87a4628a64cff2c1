"""The hash of a user's source code: what changes it, and what does not."""

from __future__ import annotations

import importlib
import py_compile
import shutil
import sys
import types
import zipfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import torch

import callbacks
from mmp.config import source_code
from mmp.config.objects import instantiate
from mmp.config.source_code import OWN_CALLBACKS, own_source_digest, source_digest

CLASS = "class Mine:\n    pass\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder on Python's path; what is imported from it is forgotten at the end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    source_code._read.clear()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


def changes(address: str, folder: Path, edited: str) -> bool:
    """Return whether an edit of a file changes the hash of a class, and its reversal changes it back."""
    path = folder / edited
    before, text = source_digest(address), path.read_text()
    path.write_text(f"{text}\nedited = True\n")
    after = source_digest(address)
    path.write_text(text)
    assert source_digest(address) == before
    return after != before


@pytest.mark.parametrize(
    ("statement", "files"),
    [
        ("import helper", ["helper.py"]),
        ("import helper as h, json", ["helper.py"]),
        ("from helper import importance", ["helper.py"]),
        ("from helper import *", ["helper.py"]),
        ("def late():\n    from helper import importance", ["helper.py"]),
        ("try:\n    import helper\nexcept ImportError:\n    helper = None", ["helper.py"]),
        ("import pkg.inner.deep", ["pkg/__init__.py", "pkg/inner/__init__.py", "pkg/inner/deep.py"]),
        ("from pkg.inner import deep", ["pkg/__init__.py", "pkg/inner/__init__.py", "pkg/inner/deep.py"]),
        ("from pkg import inner", ["pkg/__init__.py", "pkg/inner/__init__.py"]),
        ("import spread.part", ["spread/part.py"]),
        ("from spread.far.away import part", ["spread/far/away/part.py"]),
        ("import importlib\nh = importlib.import_module('helper')", ["helper.py"]),
        ("from importlib import import_module\nh = import_module('pkg.inner.deep')", ["pkg/inner/deep.py"]),
        ("h = __import__('helper')", ["helper.py"]),
    ],
    ids=str,
)
def test_an_edit_of_an_imported_file_changes_the_hash(statement: str, files: list[str], folder: Path) -> None:
    inner = {"pkg/__init__.py": "", "pkg/inner/__init__.py": "", "pkg/inner/deep.py": "x = 1\n"}
    inner["spread/far/away/part.py"] = "x = 1\n"
    write(folder, {"helper.py": "def importance(w):\n    return w\n", "spread/part.py": "x = 1\n", **inner})
    write(folder, {"mine.py": f"{statement}\n{CLASS}"})
    for file in ["mine.py", *files]:
        assert changes("mine.Mine", folder, file), file
    assert not {"mine", "helper", "pkg", "spread"} & sys.modules.keys()


@pytest.mark.parametrize(
    "statement",
    ["from . import sibling", "from .sibling import x", "from .deeper import thing", "from .deeper.thing import *",
     "import importlib\ns = importlib.import_module('.sibling', __package__)"],
    ids=str,
)  # fmt: skip
def test_relative_imports_are_followed(statement: str, folder: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/sibling.py": "x = 1\n",
        "pkg/deeper/__init__.py": "",
        "pkg/shared.py": "z = 1\n",
    }
    write(folder, {**files, "pkg/deeper/thing.py": "from ..shared import z\n", "pkg/mine.py": f"{statement}\n{CLASS}"})
    read = ["pkg/__init__.py"]
    read += (
        ["pkg/sibling.py"]
        if "sibling" in statement
        else ["pkg/deeper/__init__.py", "pkg/deeper/thing.py", "pkg/shared.py"]
    )
    for file in read:
        assert changes("pkg.mine.Mine", folder, file), file


def test_a_helper_of_a_helper_counts_and_circles_end(folder: Path) -> None:
    write(
        folder,
        {"mine.py": f"import first\n{CLASS}", "first.py": "import second\n", "second.py": "import mine, third\n"},
    )
    write(folder, {"third.py": "x = 1\n", "unrelated.py": "x = 1\n"})
    assert changes("mine.Mine", folder, "third.py")
    assert not changes("mine.Mine", folder, "unrelated.py")


@pytest.mark.parametrize(
    "address", ["mine.Mine", "mine.Mine.Inner", "mine.make", "mine:Mine", "pkg.Mine", "pkg.mod.Mine"]
)
def test_every_form_of_an_address_is_understood(address: str, folder: Path) -> None:
    files = {"mine.py": "import helper\nclass Mine:\n    class Inner: ...\ndef make():\n    return Mine()\n"}
    write(
        folder,
        {
            **files,
            "helper.py": "",
            "pkg/__init__.py": "from .mod import Mine\n",
            "pkg/mod.py": f"import helper\n{CLASS}",
        },
    )
    assert changes(address, folder, "helper.py")


def test_a_new_helper_changes_the_hash(folder: Path) -> None:
    write(folder, {"mine.py": f"try:\n    import helper\nexcept ImportError:\n    pass\n{CLASS}"})
    before = source_digest("mine.Mine")
    write(folder, {"helper.py": "x = 1\n"})
    assert source_digest("mine.Mine") != before


def test_a_copy_in_another_folder_has_the_same_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("a", "b"):
        write(folder / name, {"mine.py": f"import helper\n{CLASS}", "helper.py": "x = 1\n"})
        with monkeypatch.context() as context:
            context.syspath_prepend(str(folder / name))
            found.append(source_digest("mine.Mine"))
        (folder / name / "mine.py").unlink()
    assert found[0] == found[1] is not None


def test_code_without_source_counts_by_its_bytes(folder: Path) -> None:
    write(folder, {"mine.py": f"import helper\n{CLASS}", "helper.py": "x = 1\n"})
    found = []
    for text in ("x = 1\n", "x = 2\n"):
        (folder / "helper.py").write_text(text)
        py_compile.compile(str(folder / "helper.py"), cfile=str(folder / "helper.pyc"), doraise=True)
        (folder / "helper.py").unlink()
        importlib.invalidate_caches()
        found.append(source_digest("mine.Mine"))
    assert found[0] != found[1]


def test_code_in_a_zip_file_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in range(2):
        path = folder / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("zipped.py", f"x = {number}\n{CLASS}")
        with monkeypatch.context() as context:
            context.syspath_prepend(str(path))
            found.append(source_digest("zipped.Mine"))
        source_code._read.clear()
    assert None not in found
    assert found[0] != found[1]


@pytest.mark.parametrize("text", ["def broken(:\n", "x = '\\d'\n", "# -*- coding: latin-1 -*-\nx = 'ü'\n", "\0"])
def test_files_that_are_odd_or_no_python_count_by_their_bytes(
    text: str, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write(folder, {"mine.py": f"import helper\n{CLASS}", "helper.py": ""})
    (folder / "helper.py").write_bytes(text.encode("latin-1"))
    first = source_digest("mine.Mine")
    (folder / "helper.py").write_bytes(text.encode("latin-1") + b"\n\n")
    assert None is not first != source_digest("mine.Mine")
    assert [str(one.message) for one in recwarn] == []


@pytest.mark.parametrize(
    "address",
    ["mmp.pruning.signals.Magnitude", "mmp.Magnitude", "callbacks.pruning.MaskPruning", "torch.nn.Linear",
     "pytorch_lightning.callbacks.ModelCheckpoint", "collections.OrderedDict", "json.JSONDecoder", "sys.exit",
     "nowhere.Mine", "Mine", "", "..x", "a b.c"],
)  # fmt: skip
def test_code_of_others_has_no_hash(address: str) -> None:
    assert source_digest(address) is None


def test_a_users_file_beside_our_callbacks_counts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    here = {path.stem for path in Path(str(callbacks.__file__)).parent.glob("*.py")} - {"__init__"}
    assert here == OWN_CALLBACKS
    monkeypatch.setattr(callbacks, "__path__", [*callbacks.__path__, str(folder / "more")])
    monkeypatch.setattr(callbacks.__spec__, "submodule_search_locations", callbacks.__path__)
    write(folder, {"more/own.py": f"from callbacks.pruning import MaskPruning\n{CLASS}"})
    assert changes("callbacks.own.Mine", folder, "more/own.py")


def install(folder: Path, name: str, version: str, content: str = "sha256=a") -> None:
    write(folder, {"site-packages/theirs/__init__.py": CLASS, "site-packages/theirs/part.py": "x = 1\n"})
    for old in (folder / "site-packages").glob("*.dist-info"):
        shutil.rmtree(old)
    info = f"site-packages/{name}-{version}.dist-info"
    write(folder, {f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n"})
    write(folder, {f"{info}/RECORD": f"theirs/part.py,{content},6\ntheirs/fast.so,sha256={folder.name},9\n"})
    source_code._version.cache_clear()
    source_code._is_installed.cache_clear()


@pytest.mark.parametrize("distribution", ["theirs", "py-theirs"])
@pytest.mark.parametrize("address", ["theirs.Mine", "mine.Mine"])
def test_an_installed_package_counts_by_its_version(
    address: str, distribution: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder / "site-packages"))
    write(folder, {"mine.py": f"import theirs.part, torch\n{CLASS}"})
    install(folder, distribution, "1.0")
    before = source_digest(address)
    assert not changes(address, folder, "site-packages/theirs/__init__.py")
    install(folder, distribution, "1.1")
    assert source_digest(address) != before
    install(folder, distribution, "1.0", "sha256=b")  # an own package, installed again after an edit
    assert source_digest(address) != before
    install(folder, distribution, "1.0")
    assert source_digest(address) == before


def test_an_editable_package_counts_by_its_contents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, {"checkout/src/editable/__init__.py": CLASS, "checkout/src/editable/part.py": "x = 1\n"})

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            place = folder / "checkout" / "src" / "editable"
            locations = [str(place)]
            file = place / "__init__.py"
            if name != "editable":
                return None
            return spec_from_file_location(name, file, submodule_search_locations=locations)

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    write(folder, {"mine.py": f"from editable import part\n{CLASS}"})
    for address in ("editable.Mine", "mine.Mine"):
        assert changes(address, folder, "checkout/src/editable/__init__.py")
    assert changes("mine.Mine", folder, "checkout/src/editable/part.py")


def test_a_file_that_nobody_installed_counts_by_its_contents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder / "site-packages"))
    write(folder, {"site-packages/dropped.py": CLASS})
    assert changes("dropped.Mine", folder, "site-packages/dropped.py")


def test_a_module_of_the_user_may_have_the_name_of_a_standard_one(folder: Path) -> None:
    assert "this" not in sys.modules
    write(folder, {"this.py": "x = 1\n", "mine.py": f"import this\n{CLASS}"})
    assert changes("mine.Mine", folder, "this.py")


def test_the_hash_is_of_the_code_that_runs(folder: Path) -> None:
    write(folder, {"mine.py": f"import helper\n{CLASS}", "helper.py": "x = 1\n", "other.py": f"import helper\n{CLASS}"})
    source_digest("mine.Mine")  # as a sweep that composes all its jobs
    (folder / "helper.py").write_text("x = 'edited before the import'\n")
    instantiate({"_target_": "mine.Mine"}, "signal")
    running = source_digest("mine.Mine")
    (folder / "helper.py").write_text("x = 3\n")
    assert source_digest("mine.Mine") == running
    other = source_digest("other.Mine")
    (folder / "helper.py").write_text("x = 'edited before the import'\n")
    assert source_digest("other.Mine") == other
    del sys.modules["helper"], sys.modules["mine"]  # as a new process
    source_code._read.clear()
    assert source_digest("mine.Mine") == running


def test_code_without_a_file_is_the_same_in_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed_in", types.ModuleType("typed_in"))
    assert source_digest("typed_in.Mine") is not None
    assert source_digest("typed_in.Mine") == source_digest("typed_in.Mine")


def test_our_own_code_counts_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"mmp/config/source_code.py": "", "mmp/a/one.py": "x = 1\n", "mmp/a/b/two.py": "", "mmp/c.py": ""})
    monkeypatch.setattr(source_code, "__file__", str(tmp_path / "mmp" / "config" / "source_code.py"))

    def digest() -> str:
        own_source_digest.cache_clear()
        return own_source_digest("a", "c.py")

    seen = [digest()]
    for file in ("mmp/a/b/two.py", "mmp/c.py", "mmp/a/three.py"):
        write(tmp_path, {file: "y = 2\n"})
        seen.append(digest())
    (tmp_path / "mmp/a/three.py").rename(tmp_path / "mmp/a/four.py")
    seen.append(digest())
    assert len(set(seen)) == len(seen)
    own_source_digest.cache_clear()


def test_a_torch_module_of_the_user_counts(folder: Path) -> None:
    write(folder, {"mine.py": "import torch\nclass Mine(torch.nn.Module):\n    pass\n"})
    assert changes("mine.Mine", folder, "mine.py")
    assert isinstance(instantiate({"_target_": "mine.Mine"}, "x"), torch.nn.Module)


def test_a_class_in_folders_without_init_files_counts(folder: Path) -> None:
    write(folder, {"research/signals/mine.py": f"from research.tools import helper\n{CLASS}"})
    write(folder, {"research/tools/helper.py": ""})
    assert changes("research.signals.mine.Mine", folder, "research/signals/mine.py")
    assert changes("research.signals.mine.Mine", folder, "research/tools/helper.py")
    instantiate({"_target_": "research.signals.mine.Mine"}, "signal")


def test_a_helper_that_is_not_on_the_path_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = "import sys\nsys.path.append('elsewhere')\n"
    optional = "try:\n    import absent_option\nexcept ImportError:\n    pass\ndef late():\n    import absent_late\n"
    write(folder, {"mine.py": f"{path}import absent_helper.deep\nimport json, torch\n{optional}{CLASS}"})
    assert source_digest("mine.Mine") == source_digest("mine.Mine")
    (message,) = caplog.messages
    assert message.startswith("mine imports absent_helper, which is not on Python's path: no edit of it")
