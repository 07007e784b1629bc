"""Settings in TOML or JSON: files read and checked, with suggestions, and values written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fusestore.errors import InvalidInputError, did_you_mean
from fusestore.storage.location import Location

_Model = TypeVar("_Model", bound=BaseModel)


MAX_SETTINGS_BYTES = 2**22


def read_settings_file(location: Location) -> dict[str, Any]:
    """The content of a .json file, or of any other file as TOML.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: it is not valid JSON or TOML, or holds no table.
    """
    data = location.read_prefix(MAX_SETTINGS_BYTES + 1)
    if len(data) > MAX_SETTINGS_BYTES:
        raise InvalidInputError(
            f"{location} is larger than a file of settings may be ({MAX_SETTINGS_BYTES:,} bytes)."
        )
    try:
        text = data.decode()
        content = json.loads(text) if location.name.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{location} is not valid TOML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{location} holds no table of settings but a {type(content)}.")
    return content


def toml_value(value: Any) -> str:  # noqa: ANN401 - a value of any setting
    """A value as TOML writes it: text, numbers, lists, and tables on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool | str):
        # A JSON text is one of TOML too, but for the character DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def parse_settings(model: type[_Model], content: Mapping[str, Any], where: str) -> _Model:
    """Validate settings; the error names each wrong value.

    Raises:
        InvalidInputError: an unknown key (the nearest known one is suggested), a missing one, or
            a value that does not fit.
    """
    check_keys(content, list(model.model_fields), where)
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: "
            + item["msg"].removeprefix("Value error, ").removesuffix(".")
            for item in error.errors()
        )
        raise InvalidInputError(f"{where} is not valid. {problems}.") from error


def check_keys(content: Mapping[str, Any], known: list[str], where: str) -> None:
    """Refuse an unknown key, and suggest the nearest known key.

    Raises:
        InvalidInputError: there is an unknown key.
    """
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known) or f"Keys are: {', '.join(known)}."
            raise InvalidInputError(f"{key!r} is not a key of {where}. {hint}")
