"""Command-line options made of a settings class: one definition per setting.

The pattern, as `cli/capture.py` follows it:

1. The settings class is beside its stage. Each field has a `description` that is a whole phrase,
   bounds (`ge`, `le`, …) and a type; `Literal` makes choices. A description names another setting
   as `top_k`, which help shows as `--top-k`. What only the command line needs is in
   `json_schema_extra={"panel": "Kept entries", "short": "-k", "names": ["--lr"],
   "metavar": "SPLIT=NUMBER"}`; `names` replaces the name made of the field's.
2. The command takes `settings: CaptureSettings` and is decorated with
   `@settings_options(CaptureSettings)`. Typer sees one option per field in its place.
3. A command that lays options over a file takes `settings: TypedSettings[CaptureSettings]`
   instead, and calls `settings.over(table)`. Fields that options cannot express (tables, lists of
   tables) are listed in `skip`, and the command passes them to `over`.
4. No option of a setting is written by hand. Defaults are those of the class: only typed values
   are passed on. A value that the class refuses ends with exit code 2 and the option's name.
5. `cli/commands.py` has the command's panel, its one-line help and two examples.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_origin

import typer
from pydantic import BaseModel, ValidationError

from fusestore.errors import InvalidInputError
from fusestore.store.settings_file import parse_settings

from .field_options import SettingOption, setting_options

_Settings = TypeVar("_Settings", bound=BaseModel)
_Command = Callable[..., None]

_CONTEXT = "_settings_context"


@dataclass(frozen=True)
class TypedSettings(Generic[_Settings]):
    """The settings that the user typed, and only those.

    Attributes:
        settings: the settings class.
        values: typed values by field; those of a table are in a nested dictionary.
    """

    settings: type[_Settings]
    values: Mapping[str, Any]
    options: tuple[SettingOption, ...]
    context: typer.Context

    def over(
        self, base: Mapping[str, Any] | None = None, base_name: str = "The options"
    ) -> _Settings:
        """Validated settings: typed values, over `base`, over the defaults of the class.

        Args:
            base: values by field, such as a TOML file's table.
            base_name: name of `base` in messages.

        Raises:
            typer.BadParameter: a value does not fit, and an option was typed; exit code 2.
            InvalidInputError: `base` alone is not valid.
        """
        merged = dict(base or {})
        for key, value in self.values.items():
            below = merged.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                merged[key] = {**below, **value}
            else:
                merged[key] = value
        try:
            return parse_settings(self.settings, merged, base_name)
        except InvalidInputError as error:
            if not self.values or not isinstance(error.__cause__, ValidationError):
                raise
            raise self._refusal(error.__cause__) from error

    def _refusal(self, error: ValidationError) -> typer.BadParameter:
        problems, names = [], []
        for item in error.errors():
            option = self._option(item["loc"])
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            if option is None:
                place = ".".join(map(str, item["loc"]))
                problems.append(f"{place}: {message}" if place else self._with_flags(message))
                continue
            names.append(option.name)
            problems.append(f"{message}, not {_shown(item['input'])}")
        hint = ", ".join(dict.fromkeys(names)) or None
        return typer.BadParameter("; ".join(problems) + ".", ctx=self.context, param_hint=hint)

    def _option(self, place: tuple[int | str, ...]) -> SettingOption | None:
        """The option of the setting in which an error lies."""
        matching = [option for option in self.options if place[: len(option.path)] == option.path]
        return matching[0] if matching else None

    def _with_flags(self, message: str) -> str:
        """A message about several settings, with their options' names.

        A setting's name of one word may be an ordinary word of the sentence, so it is kept.
        """
        flags = {option.parameter: option.name for option in self.options if len(option.path) == 1}
        names = [re.escape(name) for name in flags if "_" in name]
        if not names:
            return message
        return re.sub(rf"\b({'|'.join(names)})\b", lambda match: flags[match[1]], message)


def settings_options(
    settings: type[BaseModel],
    *,
    parameter: str = "settings",
    panel: str | None = None,
    skip: Collection[str] = (),
) -> Callable[[_Command], _Command]:
    """Give a Typer command one option for each field of a settings class.

    The command's own `parameter` receives a validated instance of the class, or a `TypedSettings`
    if it is annotated so. A field that is a settings class, or None, becomes prefixed options
    (`--lora-rank`); the field is set when one of them is typed.

    Args:
        settings: the class.
        parameter: name of the command's parameter.
        panel: replaces the panels that the fields name.
        skip: fields without an option.

    Raises:
        TypeError: a field has no description or a type that no option can express, or the command
            has no such parameter.
    """
    options = tuple(setting_options(settings, panel=panel, skip=skip))

    def decorate(command: _Command) -> _Command:
        own = dict(inspect.signature(command, eval_str=True).parameters)
        if parameter not in own:
            raise TypeError(f"{command.__name__} has no parameter {parameter!r}.")
        annotation = own[parameter].annotation
        only_typed = annotation is TypedSettings or get_origin(annotation) is TypedSettings
        contexts = [name for name, p in own.items() if p.annotation is typer.Context]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:  # noqa: ANN401 - what the user typed
            context = arguments[contexts[0]] if contexts else arguments.pop(_CONTEXT)
            typed = [(option, arguments.pop(option.parameter)) for option in options]
            values = _typed_values(context, typed)
            typed_settings = TypedSettings(settings, values, options, context)
            arguments[parameter] = typed_settings if only_typed else typed_settings.over()
            command(**arguments)

        parameters: list[inspect.Parameter] = []
        for name, declared in own.items():
            new = _parameters(options, only_typed) if name == parameter else [declared]
            parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in new]
        if not contexts:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(_CONTEXT, kind, annotation=typer.Context))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.setting_options = options  # type: ignore[attr-defined]
        run.__annotations__ = {parsed.name: parsed.annotation for parsed in parameters}
        return run

    return decorate


def _parameters(options: tuple[SettingOption, ...], only_typed: bool) -> list[inspect.Parameter]:
    parameters = []
    for option in options:
        default = option.default
        if only_typed and default is inspect.Parameter.empty:
            # The file below the options may have the value.
            default = None
        annotation = option.annotation | None if default is None else option.annotation
        parameters.append(
            inspect.Parameter(
                option.parameter,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[annotation, option.option],
            )
        )
    return parameters


def _typed_values(context: typer.Context, typed: list[tuple[SettingOption, Any]]) -> dict[str, Any]:
    """The values that were typed, by field."""
    values: dict[str, Any] = {}
    for option, value in typed:
        source = context.get_parameter_source(option.parameter)
        if source is None or source.name in ("DEFAULT", "DEFAULT_MAP"):
            continue
        *tables, name = option.path
        table_values = values
        for table in tables:
            table_values = table_values.setdefault(table, {})
        try:
            table_values[name] = option.value(value)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=context, param_hint=option.name) from error
    return values


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
