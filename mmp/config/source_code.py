"""Source code that decides a run's numbers: a user's classes with all modules that they import, and this project's own.

A hash of it is part of a run's identity and of the names of cache files, so that an edit is never answered with a
result of the code before the edit. Imports torch nowhere, and imports no module of the user.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import logging
import sys
import sysconfig
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mmp.errors import listed
from mmp.files import Stamp, stamp_of

log = logging.getLogger(__name__)

# This project and packages that it builds on. A new version of them changes no hash.
_FRAMEWORKS = frozenset(
    {"mmp", "hydra_plugins", "torch", "torchvision", "timm", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
    | {"numpy", "scipy", "sklearn", "PIL", "safetensors", "hydra", "omegaconf", "yaml"}
)
# The modules of callbacks/ that this project has. Users add their own beside them.
OWN_CALLBACKS = frozenset({"averaging", "multirun", "progress", "pruning", "requeue", "selection"})


def source_digest(address: str) -> str | None:
    """Return a hash of the code that a ``_target_`` names: its module and, transitively, the modules that this imports.

    The hash holds names of modules and contents of files, but no paths, so a copy in another folder has the same one.
    Any edit of a file changes it, also of a comment. Of an installed package, the version counts, and the hashes that
    its installer has recorded. Imports are followed wherever they are written, also in functions, and so are
    ``importlib.import_module`` and ``__import__`` with a literal name. Names that are computed, and data files that the
    code reads, are not followed.

    Python keeps a module in memory from its first import on. So does this function: of a module that is imported, it
    keeps the contents that the file had before the import, which is the code that runs.

    Args:
        address: The address of a class or function, such as ``my_signals.Mine``.

    Returns:
        The hash, or None if the code is part of this project, of a framework below it or of Python, and if there is no
        such module.
    """
    if address.partition(".")[0] in _FRAMEWORKS or not (root := module_of(address)):
        return None
    sources: dict[str, str] = {}
    followed: dict[str, bool] = {}  # of every module that was seen: whether modules inside it count, too
    waiting = [root]
    while waiting:
        for name in _with_parents(waiting.pop()):
            if name not in followed:
                source = _source_of(name) or _NOT_FOLLOWED
                followed[name] = source.followed
                waiting += source.imports
                _warn_of_missing(name, source.needs)
                if source.digest:
                    sources[name] = source.digest
            if not followed[name]:
                break
    return hashlib.sha256(json.dumps(sorted(sources.items())).encode()).hexdigest() if sources else None


@functools.cache
def own_source_digest(*parts: str) -> str:
    """Return a hash of this project's own code.

    Args:
        parts: Packages and files in the folder ``mmp``, such as ``pruning`` and ``tensors.py``.
    """
    root, sha = Path(__file__).parents[1], hashlib.sha256()
    for part in parts:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            sha.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return sha.hexdigest()


@dataclass(frozen=True)
class _Source:
    """The code of one module.

    Attributes:
        digest: A hash of its file, or the version of its package; empty if neither counts.
        imports: The names that it imports: modules, and perhaps attributes of modules.
        needs: The packages among them without which it cannot be imported.
        followed: Whether modules inside this one count, too.
    """

    digest: str = ""
    imports: tuple[str, ...] = ()
    followed: bool = True
    needs: tuple[str, ...] = ()


_NOT_FOLLOWED = _Source(followed=False)
_WITHOUT_FILE = _Source(uuid.uuid4().hex)  # typed into an interpreter: the same in no other process
_read: dict[str, tuple[Stamp | None, _Source]] = {}


def _with_parents(name: str) -> Iterator[str]:
    """Yield the packages around a module, which Python imports first, and then the module."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def file_of(address: str) -> str | None:
    """Return the file of the code that a ``_target_`` names, from its package on: ``my_models.py``, ``nets/resnet.py``.

    Args:
        address: The address of a class or function, such as ``my_models.ResNet20``.

    Returns:
        The file, or None if its module has none.
    """
    name = module_of(address)
    place = _place_of(name) if name else None
    if name is None or place is None or place.file is None:
        return None
    *_, folder = place.file.parents[: 1 + name.count(".") + (place.folders is not None)]
    return place.file.relative_to(folder).as_posix()


def module_of(address: str) -> str | None:
    """Return the module in the address of a class, which may be nested in another class."""
    module = None
    for name in _with_parents(address.replace(":", ".")):
        if _place_of(name) is None:
            break
        module = name
    return module


@dataclass(frozen=True)
class _Place:
    """Where Python finds a module.

    Attributes:
        file: Its file; None for a namespace package, a module that is built in, and one that was typed in.
        loader: The loader of the file.
        folders: The folders of a package's modules; None for a plain module.
        specified: Whether the import system has a specification of it.
    """

    file: Path | None
    loader: Any
    folders: list[str] | None
    specified: bool = True


def _place_of(name: str) -> _Place | None:
    """Return where a module is found, as ``importlib.util.find_spec`` does, but without an import of its parents."""
    module = sys.modules.get(name)
    spec = _spec_of(name) if module is None else getattr(module, "__spec__", None)
    if spec:
        folders = spec.submodule_search_locations
        file = Path(spec.origin) if spec.has_location and spec.origin else None
        return _Place(file, spec.loader, None if folders is None else list(folders))
    if module is None:
        return None
    file = getattr(module, "__file__", None)  # of a script
    return _Place(Path(file) if file else None, getattr(module, "__loader__", None), None, specified=False)


def _spec_of(name: str) -> ModuleSpec | None:
    """Return the specification of a module that is not imported."""
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        above = _place_of(parent)
        return _spec_below(above.folders, name) if above and above.folders is not None else None
    except (ImportError, ValueError):
        return None


def _spec_below(folders: list[str], name: str) -> ModuleSpec | None:
    """Return the specification of a module in the folders of a package that is not imported."""
    try:
        return PathFinder.find_spec(name, folders)
    except KeyError:  # a folder without an __init__.py, for which Python looks for the package in sys.modules
        spec = ModuleSpec(name, None, is_package=True)
        inside = (Path(folder) / name.rpartition(".")[2] for folder in folders)
        spec.submodule_search_locations = [str(path) for path in inside if path.is_dir()]
        return spec


def _source_of(name: str) -> _Source | None:
    """Return the code of a module; None if there is no module of this name."""
    top, _, rest = name.partition(".")
    if top in _FRAMEWORKS or (top == "callbacks" and rest in OWN_CALLBACKS):
        return _NOT_FOLLOWED
    place = _place_of(name)
    if place is None:
        return None
    if place.file is None or name == "callbacks":
        return _Source(followed=place.folders is not None) if place.specified else _WITHOUT_FILE
    *_, folder = place.file.parents[: 1 + name.count(".") + (place.folders is not None)]
    number = _version(top, folder) if _is_installed(folder) else ""
    if number or _is_standard(folder):
        return _Source(number, followed=False)
    return _source_in(place.file, place.loader, name, place.folders is not None)


def _source_in(file: Path, loader: Any, name: str, is_package: bool) -> _Source | None:
    """Return the code in a file. Once it is imported, it is what it was before."""
    known = _read.get(name)
    if known and name in sys.modules:
        return known[1]
    try:
        stamp = stamp_of(file) if file.is_file() else None
        if known and stamp and known[0] == stamp:
            return known[1]
        code = file.read_bytes() if stamp else loader.get_data(str(file))  # from a zip file
    except (OSError, AttributeError):
        return None
    tree = _tree_of(code) if file.suffix == ".py" else ast.Module([], [])
    imports = _imports(tree, name if is_package else name.rpartition(".")[0])
    source = _Source(hashlib.sha256(code).hexdigest(), imports, needs=_needs(tree))
    _read[name] = stamp, source
    return source


def _tree_of(code: bytes) -> ast.Module:
    """Return the syntax of a module; an empty one if the code is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of the user's code when it is imported
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])


def _needs(tree: ast.Module) -> tuple[str, ...]:
    """Return the packages that a module imports in any case: outside of conditions, handlers and functions."""
    names: list[str] = []
    for node in tree.body:
        match node:
            case ast.Import(names=aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), level=0):
                names.append(module)
    return tuple(sorted({name.partition(".")[0] for name in names}))


@functools.cache
def _warn_of_missing(name: str, needs: tuple[str, ...]) -> None:
    """Log a warning if Python does not find a package that a module needs: the module itself may change the path."""
    if missing := [package for package in needs if package not in _FRAMEWORKS and _place_of(package) is None]:
        log.warning(
            "%s imports %s, which is not on Python's path: no edit of it will be noticed; add its folder to PYTHONPATH",
            name, listed(missing),
        )  # fmt: skip


def _imports(tree: ast.Module, package: str) -> tuple[str, ...]:
    """Return the names that a module in a package imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = _absolute("." * level + (module or ""), package)
                found.update([base, *(f"{base}.{alias.name}" for alias in names)] if base else ())
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(literal)), *_],
            ):
                found.add(_absolute(literal, package))
    return tuple(sorted(found - {""}))


def _absolute(name: str, package: str) -> str:
    """Return the absolute name of a module, empty if its dots lead out of the package."""
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return ""


@functools.cache
def _is_installed(folder: Path) -> bool:
    """Return whether an installer, such as pip, manages a folder of modules."""
    return bool({"site-packages", "dist-packages"} & {*folder.parts}) or any(folder.glob("*.dist-info"))


@functools.cache
def _is_standard(folder: Path) -> bool:
    """Return whether a folder belongs to Python's standard library, in which installers have folders of their own."""
    return not _is_installed(folder) and any(
        folder.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")
    )


@functools.cache
def _version(top: str, folder: Path) -> str:
    """Return the versions of the distributions that contain a package, empty if there is none.

    With them go the hashes that an installer has recorded, since an own package is often installed again under the same
    version.

    Args:
        top: The name of the package.
        folder: The folder in which it is installed.
    """
    try:
        found = [distribution(top)]
    except PackageNotFoundError:  # importlib.metadata.packages_distributions needs seconds
        found = [
            Distribution.at(record.parent) for record in sorted(folder.glob("*.dist-info/RECORD")) if _has(record, top)
        ]
    return ", ".join(f"{one.name}=={one.version} {_recorded(one)}" for one in found)


def _has(record: Path, top: str) -> bool:
    """Return whether a list of installed files has files of a package."""
    text = "\n" + record.read_text(encoding="utf-8", errors="replace")
    return f"\n{top}/" in text or f"\n{top}." in text


def _recorded(installed: Distribution) -> str:
    """Return a hash of the recorded hashes of a distribution's Python files, the same for all platforms."""
    files = [(str(file), file.hash.value) for file in installed.files or () if file.suffix == ".py" and file.hash]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()
