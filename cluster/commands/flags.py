"""Command-line flags generated from the fields of a frozen dataclass, and the dataclass read back from them."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar, Union

_Config = TypeVar("_Config")
_NAMED = re.compile(r"`(\w+)`")
_UNITS = {"_s": "SECONDS", "_bytes": "BYTES", "_tokens": "TOKENS"}


@dataclass(frozen=True)
class Custom:
    """Properties of a flag that cannot be derived from its field."""

    flag: str | None = None
    """Name of the flag, with its dashes."""
    help: str | None = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    """Converts the text of an argument to the value of the field."""
    choices: Sequence[str] | None = None


@dataclass(frozen=True)
class _Leaf:
    """A field that has a flag."""

    path: str
    """Name of the field, with the names of the dataclasses around it, separated by dots."""
    hint: Any
    doc: str
    default: Any
    custom: Custom
    flag: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


class Flags(Generic[_Config]):
    """The flags of a configuration: a flag for each field, including those of nested configurations.

    Names follow the fields (`max_batch` is --max-batch, `timeout_s` is --timeout), help texts are the docstrings under
    them, defaults are those of an instance.
    """

    def __init__(
        self,
        defaults: _Config,
        custom: Mapping[str, Custom] | None = None,
        prefixes: Mapping[str, str] | None = None,
        skip: Collection[str] = (),
    ) -> None:
        """Derive the flags.

        Args:
            defaults: values of flags that are not given.
            custom: by path, such as "client.cache_bytes", properties that cannot be derived from the field.
            prefixes: for fields that are configurations themselves, the prefix of the flags of their fields.
            skip: paths of fields without a flag.
        """
        self._defaults = defaults
        self._leaves = list(_leaves(defaults, "", prefixes or {}, custom or {}, skip))

    def add(self, group: Any) -> None:
        """Add the flags to an argument parser or to an argument group."""
        names = {leaf.name: leaf.flag for leaf in self._leaves}
        for leaf in self._leaves:
            group.add_argument(leaf.flag, dest=leaf.path, help=_help(leaf, names), **_syntax(leaf))

    def read(self, args: argparse.Namespace, **fields: Any) -> _Config:
        """Return the configuration that the flags describe; `fields` are the values of fields without flags.

        Raises:
            ValueError: the dataclass refuses a value.
        """
        return self.update(self._defaults, args, **fields)

    def update(self, config: _Config, args: argparse.Namespace, **fields: Any) -> _Config:
        """Return a configuration with the flags that were given in place of its values, and `fields` likewise.

        Raises:
            ValueError: the dataclass refuses a value.
        """
        given = {leaf.path: getattr(args, leaf.path) for leaf in self._leaves}
        return _with(config, {**{k: v for k, v in given.items() if v is not None}, **fields})


def _leaves(
    config: Any,
    path: str,
    prefixes: Mapping[str, str],
    custom: Mapping[str, Custom],
    skip: Collection[str],
    prefix: str = "",
) -> Iterator[_Leaf]:
    hints, docs = typing.get_type_hints(type(config)), field_docs(type(config))
    for field in fields(config):
        value, here = getattr(config, field.name), path + field.name
        if here in skip:
            continue
        if is_dataclass(value):
            yield from _leaves(value, f"{here}.", prefixes, custom, skip, prefixes.get(here, f"{field.name}_"))
        else:
            own = custom.get(here, Custom())
            flag = own.flag or "--" + (prefix + field.name.removesuffix("_s")).replace("_", "-")
            yield _Leaf(here, hints[field.name], docs.get(field.name, ""), value, own, flag)


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a class, as one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def _syntax(leaf: _Leaf) -> dict[str, Any]:
    """Return the arguments of `add_argument` that define the syntax of a value."""
    hint, own = _without_none(leaf.hint), leaf.custom
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction} if leaf.default else {"action": "store_const", "const": True}
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    metavar = own.metavar or (None if own.choices else _metavar(leaf.name, item))
    syntax = {"type": own.parse or item, "choices": own.choices, "metavar": metavar}
    if item is hint:
        return syntax
    return {**syntax, "action": "append"} if item is str else {**syntax, "nargs": "+"}


def _metavar(name: str, kind: type) -> str:
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), None)
    return unit or {int: "N", float: "X"}.get(kind, name.upper())


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint


def _help(leaf: _Leaf, names: Mapping[str, str]) -> str:
    text = leaf.custom.help or leaf.doc.removesuffix(".").replace("None: ", "Default: ")
    text = _NAMED.sub(lambda found: names.get(found[1], found[1]), text)
    first = text.partition(" ")[0]
    if first == "A" or first[1:].islower():
        text = text[0].lower() + text[1:]
    if leaf.default is not None and leaf.default is not False and leaf.default != ():
        text += " (default: yes)" if leaf.default is True else f" (default {leaf.default})"
    return text.replace("%", "%%")


def _with(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a configuration with some values replaced, by path."""
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: _with(getattr(config, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(config, **changes)
