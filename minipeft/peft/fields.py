"""Whether the values in a JSON file are what the fields of a config take, by the annotations of its dataclass."""

from __future__ import annotations

import collections.abc
import contextlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.peft.method import PeftConfig

PLAIN: dict[Any, str] = {int: "whole number", float: "finite number", str: "string", bool: "boolean"}


def checked(kind: type[PeftConfig], values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The values by field, as `kind` takes them: an int is a float too, true is no int, and a list becomes a tuple.

    Raises:
        UserError: a value is of another kind; the message names the file, the field, and what is expected.
    """
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # a config of one's own, with an annotation that only a type checker can resolve
        hints = {}
    fields: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints.get(name, Any)
        try:
            fields[name] = converted(value, hint)
        except TypeError:
            raise UserError(f"{path}: {name} is {value!r}; {_words(hint)} is expected.") from None
    return fields


def make(kind: type[PeftConfig], values: Mapping[str, Any], path: Path) -> PeftConfig:
    """The config with these values. Raises UserError, which names the file, where `kind` refuses one."""
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a UserError is a ValueError; a config of one's own may raise either
        raise UserError(f"{path}: {error}") from None


def converted(value: Any, hint: Any) -> Any:
    """The value as an annotation takes it; one of a form that no method here has takes anything.

    Raises TypeError for another kind of value.
    """
    kind, inner = _taken_apart(hint)
    if kind is typing.Union:
        for one in inner:
            with contextlib.suppress(TypeError):
                return converted(value, one)
        raise TypeError
    if kind in PLAIN:
        given = float if kind is float and type(value) is int else type(value)
        if given is not kind or (kind is float and not abs(value) <= sys.float_info.max):  # no NaN, no infinity
            raise TypeError
        return value
    if kind is tuple:
        if not isinstance(value, list):
            raise TypeError
        return tuple(converted(one, inner[0]) for one in value)
    if kind is collections.abc.Mapping:
        if not isinstance(value, dict):
            raise TypeError
        return {key: converted(one, inner[1]) for key, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _words(hint: Any) -> str:
    """What an annotation takes, in words."""
    kind, inner = _taken_apart(hint)
    if kind is typing.Union:
        return " or ".join(_words(one) for one in inner)
    if kind is tuple:
        return f"a list of {PLAIN.get(inner[0], inner[0])}s"
    if kind is collections.abc.Mapping:
        return f"an object of {PLAIN.get(inner[1], inner[1])}s"
    return f"a {PLAIN.get(kind, kind)}"


def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`str | int` -> (Union, (str, int)); `tuple[str, ...]` -> (tuple, (str, ...)); what is neither stays whole."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return typing.Union, inner
    known = (kind is tuple and inner[1:] == (...,)) or kind is collections.abc.Mapping
    return (kind, inner) if known else (hint, ())
