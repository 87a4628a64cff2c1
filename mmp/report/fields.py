"""Values of a result file by dotted key, checked for their type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmp.errors import MmpError


def value_at(content: Any, key: str) -> Any:
    """Return a value of nested JSON objects, None if it is missing.

    Args:
        content: The outermost object.
        key: The keys of all levels, joined by dots, such as ``accuracy.dense.test``.
    """
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def number(content: Mapping[str, Any], key: str, default: float | None = None) -> Any:
    """Return an int or a float, as it is stored.

    Raises:
        MmpError: if there is no such key and no default, or its value is not a number.
    """
    return _checked(content, key, (int, float), "a number", default)


def text(content: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Return a string.

    Raises:
        MmpError: if there is no such key and no default, or its value is not a string.
    """
    return _checked(content, key, (str,), "a string", default)


def objects(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects, empty if there is no such key.

    Raises:
        MmpError: if its value is not a list of objects.
    """
    return _list_of(content, key, dict, "objects")


def texts(content: Mapping[str, Any], key: str) -> list[str]:
    """Return a list of strings, empty if there is no such key.

    Raises:
        MmpError: if its value is not a list of strings.
    """
    return _list_of(content, key, str, "strings")


def _checked(content: Mapping[str, Any], key: str, kinds: tuple[type, ...], noun: str, default: Any) -> Any:
    value = value_at(content, key)
    if value is None:
        if default is None:
            raise MmpError(f"key {key!r} is missing")
        return default
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise MmpError(f"{key}={value!r} must be {noun}")
    return value


def _list_of(content: Mapping[str, Any], key: str, kind: type, noun: str) -> list[Any]:
    items = _checked(content, key, (list,), f"a list of {noun}", [])
    if not all(isinstance(item, kind) for item in items):
        raise MmpError(f"{key} must be a list of {noun}")
    return items
