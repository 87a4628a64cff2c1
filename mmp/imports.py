"""Imports of a job's libraries, which create millions of objects that live as long as the process."""

from __future__ import annotations

import functools
import gc
import importlib
from types import ModuleType


@functools.cache
def import_once(name: str) -> ModuleType:
    """Import a module without searches for garbage, and exempt all objects that exist then from later searches.

    Python would search the new objects again and again. That takes a sixth of the time to import a job's modules.

    Args:
        name: Name of the module, such as ``mmp.runs.prune``.

    Returns:
        The module. A second call with the same name only returns it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
    gc.freeze()
    return module
