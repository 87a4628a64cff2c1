"""Commands: the user's own folder of configurations, correct exit codes, and one line in place of a traceback."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmp.config.choices import FOLDER, require_names
from mmp.config.explain import explain
from mmp.config.home import expand_arguments
from mmp.config.interruption import Interrupted, as_typed, catch_termination, code_of, ignore_further
from mmp.errors import MmpError


def command(main: Callable[[], object], resumes: bool = False) -> None:
    """Run a Hydra entry point, and end the process with exit code 1 if it fails.

    An error that a user can correct is printed as one line on stderr. Any other error is a bug of this project and
    keeps its traceback. With ``HYDRA_FULL_ERROR=1`` in the environment, every error keeps it.

    The working folder extends the installation: its modules can be imported, and its ``conf/`` adds choices to every
    config group. A folder that the command line names with ``--config-dir`` takes the place of ``conf/``.

    Ctrl-C ends the process with exit code 130, SIGTERM with 143, and one or two lines.

    Args:
        main: A function decorated with ``hydra.main``.
        resumes: Whether the same command continues its work after an interruption.
    """
    typed = as_typed()
    catch_termination()
    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, which are explained here, instead of printing them
    folder = None
    printable_output()
    try:
        import_from_working_folder()
        folder, sys.argv[1:] = with_users_folder(expand_arguments(sys.argv[1:]))
        require_names(sys.argv[1:])
        main()
    except KeyboardInterrupt as error:
        ignore_further()
        again = f"the same command continues: {typed}\n" if resumes else ""
        sys.stderr.write(f"{error if str(error) else Interrupted.by(error, '')}\n{again}")
        sys.exit(code_of(error))
    except BrokenPipeError:  # the reader of the output is gone: `head`, for instance, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MmpError, HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if verbose:
            raise
        sys.stderr.write(f"error: {explain(error, folder)}\n")
        sys.exit(1)


def import_from_working_folder() -> None:
    """Let modules of the working folder be imported. The folder is the last place, so it hides no installed module."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def with_users_folder(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the user's own folder of configurations, if there is one, and a command line that names it.

    Args:
        arguments: The command line, without the program's name.

    Raises:
        MmpError: if the folder does not exist, or a file in it is not UTF-8 text.
    """
    given, _ = get_args_parser().parse_known_args(arguments)
    if given.config_path:  # in place of this project's configurations
        return None, list(arguments)
    folder = Path(given.config_dir or "conf")
    if given.config_dir and not folder.is_dir():
        raise MmpError(f"--config-dir={folder}: no such folder; leave the option out, or correct the path")
    if not folder.is_dir() or folder.resolve() == FOLDER.resolve():
        return None, list(arguments)
    _check_files(folder)
    return folder, [*([] if given.config_dir else ["--config-dir", str(folder.absolute())]), *arguments]


def _check_files(folder: Path) -> None:
    """Raise if Hydra could not read a file, and warn of files that it never reads because ours have the same name."""
    hidden = []
    for path in sorted(folder.rglob("*.yaml")):
        ours = FOLDER / path.relative_to(folder)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MmpError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
        if ours.is_file() and ours.read_text(encoding="utf-8") != text:
            hidden.append(str(path))
    if hidden:
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        reason = "not used, since mmp has a choice of the same name; rename the file"
        sys.stderr.write(f"warning: {hidden[0]}{more}: {reason}\n")


def printable_output() -> None:
    """Let stdout and stderr print any name of a file: bytes that are no text become escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet() -> None:
    """Silence messages of Lightning about the hardware and its own internals; they would hide a job's own lines."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec",
        ".*does not have many workers",
        ".*exists and is not empty",
        "The number of training batches",
        "The `srun` command is available",
        "It is recommended to use `self.log",  # the values that are logged are the same on all ranks
    ):
        warnings.filterwarnings("ignore", message=message)
