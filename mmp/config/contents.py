"""What a configuration contains: every number with its key, and every section, list and mapping in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from mmp.errors import MmpError


def numbers_in(part: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every floating-point number in a configuration, with its key."""
    if isinstance(part, float):
        yield key, part
    elif is_dataclass(part):
        for field in fields(part):
            yield from numbers_in(getattr(part, field.name), f"{key}.{field.name}".lstrip("."))
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from numbers_in(value, f"{key}.{name}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from numbers_in(value, f"{key}[{index}]")


def check_containers(part: Any, key: str = "") -> None:
    """Check that every section, list and mapping of a configuration is one.

    OmegaConf checks the values that a user writes, but not those that an interpolation puts in place of a container.

    Args:
        part: A dataclass of :mod:`mmp.config.schema`.
        key: Its key.

    Raises:
        MmpError: if a value is something else; the message names its key.
    """
    for name, (containers, optional) in _containers(part.__class__).items():
        value, own = getattr(part, name), f"{key}.{name}".lstrip(".")
        if value is None and optional:
            continue
        if not isinstance(value, containers):
            expected = "a list" if list in containers else "keys with values"
            raise MmpError(f"{own}={value}: must be {expected}; an interpolation there must refer to such a value")
        for index, element in enumerate(value if isinstance(value, list) else [value]):
            if is_dataclass(element):
                check_containers(element, f"{own}[{index}]" if isinstance(value, list) else own)


@lru_cache
def _containers(kind: type) -> dict[str, tuple[tuple[type, ...], bool]]:
    """Return the fields of a dataclass that hold a container: its classes, and whether the field may be None."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        options = get_args(hint) if get_origin(hint) not in (list, dict) else (hint,)
        kinds = [get_origin(option) or option for option in options or (hint,)]
        containers = tuple(kind for kind in kinds if kind in (list, dict) or is_dataclass(kind))
        if containers:
            found[name] = (containers, type(None) in kinds)
    return found
