"""Copies of a configuration, quickly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any


def copier_of(content: Any) -> Callable[[], Any]:
    """Return a function that returns a new copy of some content: by pickle, a fifth of the time of a deep copy.

    What cannot be pickled is copied deeply, such as objects of a class whose module was imported again since.
    """
    try:
        return partial(pickle.loads, pickle.dumps(content))
    except (pickle.PicklingError, AttributeError, TypeError):  # what pickle raises depends on the object
        return partial(copy.deepcopy, content)
