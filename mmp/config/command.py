"""How a command ends: true exit codes, and one line instead of a traceback when the user can mend it."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from mmp.config.choices import FOLDER
from mmp.errors import MmpError, nearest

_CONFIG_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")  # Hydra's options for folders of configurations


def command(main: Callable[[], object]) -> None:
    """Run a Hydra entry point and end the process with a true exit code.

    Errors that a user can mend are printed as one line on stderr, with exit code 1; anything else is a bug of
    ours and keeps its traceback. ``HYDRA_FULL_ERROR=1`` in the environment shows every traceback.

    Args:
        main: A function decorated with ``hydra.main``.
    """
    verbose = bool(os.environ.get("HYDRA_FULL_ERROR"))
    _add_working_folder()
    # Hydra prints its own errors unless asked not to; ours name the nearest valid key.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MmpError, HydraException, OmegaConfBaseException, OSError) as error:
        if verbose:
            raise
        sys.stderr.write(f"error: {explain(error)}\n")
        sys.exit(1)


def _add_working_folder() -> None:
    """Let the working folder extend an installation: its modules are importable, and its ``conf/`` adds choices.

    A folder that ``--config-dir`` names on the command line takes the place of ``conf/``.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that no file there hides an installed package
    if (folder := _users_folder()) and not any(word.startswith(_CONFIG_FOLDERS) for word in sys.argv[1:]):
        sys.argv[1:1] = ["--config-dir", str(folder)]


def _users_folder() -> Path | None:
    """Return the ``conf/`` of the working folder, None if there is none or it is our own."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != FOLDER.resolve() else None


def quiet() -> None:
    """Silence Lightning's remarks on hardware and its own internals, which would drown the line that a job prints."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec",
        ".*does not have many workers",
        ".*exists and is not empty",
        "The number of training batches",
        "The `srun` command is available",
        "It is recommended to use `self.log",  # what is logged is the same on all ranks
    ):
        warnings.filterwarnings("ignore", message=message)


def explain(error: BaseException) -> str:
    """Return one line that says what is wrong, where, and the way out."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.partition("/")
        folders = [folder / group for folder in (FOLDER, _users_folder()) if folder is not None]
        found = (path.relative_to(folder) for folder in folders for path in folder.rglob("*.yaml"))  # nested ones, too
        options = {*(error.options or ()), *(path.with_suffix("").as_posix() for path in found)}
        return f"{group}={choice}: no such choice; {nearest(choice, options)}"
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        return _explain_key(cause)
    if isinstance(error, OmegaConfBaseException):
        return _explain_key(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; choose another folder, with hydra.run.dir=... or paths.results=..."
    first = str(error).strip().splitlines()
    text = " ".join(first[:2]) if first else type(error).__name__
    if "Could not override" in text and (key := re.search(r"override '([^']+)'", text)):
        return f"{key.group(1)}: no such config group or key"
    return text


def _explain_key(error: OmegaConfBaseException) -> str:
    message = (error.msg or str(error)).splitlines()[0]
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: must be set, with {key}=..."
    parent = error.parent_node
    if isinstance(error, ConfigKeyError | AttributeError) and isinstance(parent, DictConfig):
        last = str(error.key if error.key is not None else key)
        if not parent:
            return f"{key or last}: no such key; add it with +{key or last}=..."
        return f"{key or last}: no such key; {nearest(last, [str(k) for k in parent])}"
    return f"{key}: {message}" if key else message
