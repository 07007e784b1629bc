"""Options of a settings class, one for each field: names, type, default, bounds, help and panel."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

_SCALARS = (bool, int, float, str, Path)
_NONE = "none"


@dataclass(frozen=True)
class SettingOption:
    """One option of one field.

    Attributes:
        path: the field's name, after the name of the table that it is in.
        flags: `--top-k`, `-k`; for a pair of flags `--tail/--no-tail`.
        annotation: the type that Typer parses.
        default: the value shown; `inspect.Parameter.empty` if the option is required.
        option: Typer's description of the option.
        pairs: whether values are KEY=VALUE.
        can_be_none: whether the word `none` stands for None.
    """

    path: tuple[str, ...]
    flags: tuple[str, ...]
    annotation: Any
    default: Any
    option: Any
    pairs: bool
    can_be_none: bool

    @property
    def parameter(self) -> str:
        """Name of the function's parameter."""
        return "_".join(self.path)

    @property
    def name(self) -> str:
        """The long flag, as messages name it."""
        return self.flags[0].partition("/")[0]

    def value(self, typed: Any) -> Any:  # noqa: ANN401 - a value of any setting
        """The setting's value for what Typer parsed.

        Raises:
            ValueError: a value is not KEY=VALUE.
        """
        if self.can_be_none and typed == _NONE:
            return None
        if isinstance(typed, list):
            typed = [entry.value if isinstance(entry, Enum) else entry for entry in typed]
        return key_values(typed) if self.pairs else typed


def key_values(pairs: Iterable[str], *, secret: bool = False) -> dict[str, str]:
    """`KEY=VALUE` pairs as a dictionary; a message does not show a secret one.

    Raises:
        ValueError: a text is not such a pair, or a key is given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ValueError(
                f"{'A text without key or =' if secret else repr(pair)} is not KEY=VALUE."
            )
        if key in values:
            raise ValueError(f"{key!r} is given twice.")
        values[key] = value
    return values


def setting_options(
    settings: type[BaseModel],
    *,
    panel: str | None = None,
    skip: Collection[str] = (),
    path: tuple[str, ...] = (),
    is_optional_table: bool = False,
) -> Iterator[SettingOption]:
    """The options of a settings class, in the order of its fields.

    Fields of an optional table are not required: the table is absent unless one of them is typed.
    `panel` replaces the panels that the fields name.
    """
    flags = {
        name: _flags((*path, name), _extra(field))[0]
        for name, field in settings.model_fields.items()
        if name not in skip
    }
    for name, field in settings.model_fields.items():
        if name in skip:
            continue
        extra = _extra(field)
        own_panel = panel or extra.get("panel")
        kind, optional = _without_none(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_options(
                kind, panel=own_panel, path=(*path, name), is_optional_table=optional
            )
        else:
            required = field.is_required() and not is_optional_table
            yield _setting_option(
                (*path, name), field, kind, optional, own_panel, extra, required, flags
            )


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _flags(path: tuple[str, ...], extra: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(extra.get("names") or [f"--{'-'.join(path).replace('_', '-')}"])


def _setting_option(
    path: tuple[str, ...],
    field: FieldInfo,
    kind: Any,  # noqa: ANN401 - a type of any form
    optional: bool,
    panel: str | None,
    extra: Mapping[str, Any],
    required: bool,
    flags_by_name: Mapping[str, str],
) -> SettingOption:
    setting = ".".join(path)
    if not field.description:
        raise TypeError(f"The setting {setting} has no description, so its option has no help.")
    # A description names other settings as `top_k`; the command line calls them `--top-k`.
    help_text = re.sub(
        r"`(\w+)`", lambda match: f"`{flags_by_name.get(match[1], match[1])}`", field.description
    )
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    annotation, pairs = _command_line_type(kind, setting)
    metavar = extra.get("metavar") or ("KEY=VALUE" if pairs else None)
    can_be_none = optional and default is not None
    if can_be_none:
        metavar = metavar or f"<{getattr(kind, '__name__', 'value')}|{_NONE}>"
        annotation = str
    flags = _flags(path, extra)
    if annotation is bool and default is not False:
        flags = (f"{flags[0]}/--no-{flags[0].removeprefix('--')}", *flags[1:])
    if "short" in extra:
        flags = (*flags, str(extra["short"]))
    minimum, maximum = _bounds(field) if annotation in (int, float) else (None, None)
    option = typer.Option(
        *flags,
        help=help_text,
        rich_help_panel=panel,
        metavar=metavar,
        min=minimum,
        max=maximum,
    )
    if get_origin(annotation) is list:
        default = list(default) if default and not pairs else None
    elif can_be_none:
        default = str(default)
    if required:
        default = inspect.Parameter.empty
    return SettingOption(path, flags, annotation, default, option, pairs, can_be_none)


def _bounds(field: FieldInfo) -> tuple[Any, Any]:
    """The values of `ge` and `le`, or None. Pydantic checks all bounds; Typer shows these two."""
    minimum: Any = None
    maximum: Any = None
    for bound in field.metadata:
        if isinstance(bound, Ge):
            minimum = bound.ge
        elif isinstance(bound, Le):
            maximum = bound.le
    return minimum, maximum


def _command_line_type(kind: Any, setting: str) -> tuple[Any, bool]:  # noqa: ANN401 - any type
    """The type that Typer parses for a field's type, and whether its values are KEY=VALUE."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        as_text = any(
            isinstance(entry, BeforeValidator) and str in get_args(entry.json_schema_input_type)
            for entry in arguments[1:]
        )
        return (str, False) if as_text else _command_line_type(arguments[0], setting)
    if kind in _SCALARS or origin is Literal:
        return kind, False
    if origin in (list, frozenset, set) or (origin is tuple and arguments[1:] == (...,)):
        entry: Any = _command_line_type(arguments[0], setting)[0]
        if get_origin(entry) is Literal:
            entry = _enum_of(get_args(entry))
        return list[entry], False
    if origin is tuple:
        return tuple[tuple(_command_line_type(item, setting)[0] for item in arguments)], False  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return list[str], True
    raise TypeError(f"The setting {setting} is a {kind}, which no option can express; skip it.")


def _enum_of(choices: Sequence[str]) -> Any:  # noqa: ANN401 - a class
    """An Enum of the choices: Typer parses lists of Enum members, but not of a Literal."""
    enum_class: Any = Enum
    return enum_class("Choice", {choice: choice for choice in choices})


def _without_none(annotation: Any) -> tuple[Any, bool]:  # noqa: ANN401 - any type
    """The type without `| None`, and whether it had that."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return (kinds[0] if len(kinds) == 1 else annotation), NoneType in get_args(annotation)
