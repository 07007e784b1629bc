"""Markdown of the generated reference: tables, types of JSON schemas, and lists of entries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_NOTHING = {"type": "null"}


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; cells may hold Markdown on one line."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *map(list, rows)]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n"


def entry(term: str, anchor: str, text: str) -> str:
    """One entry of a list of definitions, with an anchor of its own."""
    return f"{term} {{ #{anchor} }}\n:   {text}\n"


def code(value: object) -> str:
    """A value as JSON and TOML write it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def type_text(schema: Mapping[str, Any], name: Callable[[str], str], null: str = "null") -> str:
    """What values a JSON schema allows, in a few words.

    Args:
        schema: of a property.
        name: Markdown for the name of a definition.
        null: the word for no value; empty where a key is then left out.
    """
    if "$ref" in schema:
        return name(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return _either([code(value) for value in schema["enum"]])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            options = [option for option in schema[key] if option != _NOTHING]
            texts = list(dict.fromkeys(type_text(option, name) for option in options))
            return _either([*texts, null] if null and _NOTHING in schema[key] else texts)
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(type_text(item, name) for item in schema['prefixItems'])}]"
        items = schema.get("items") or {}
        return f"list of {_plural(type_text(items, name))}" if items else "list"
    if kind == "object" and not schema.get("properties"):
        values = schema.get("additionalProperties")
        inner = type_text(values, name) if isinstance(values, dict) and values else ""
        return f"table of {_plural(inner)}" if inner else "table"
    if isinstance(kind, list):
        return _either(list(kind))
    return {"object": "table"}.get(str(kind), str(kind or "any")) + _limits(schema)


def one_line(text: str) -> str:
    """A description as one line, a sentence: with a capital and a period."""
    text = " ".join(text.split())
    if not text:
        return ""
    if re.match(r"[a-z]+(?:[ ,;:.]|$)", text):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plural(text: str) -> str:
    return re.sub(r"^(string|integer|number|boolean|table)\b", r"\1s", text)


def _either(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _limits(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    # Bounds of 64-bit numbers say nothing to a reader.
    limits = [limit for limit in limits if "e+1" not in limit]
    return f" {', '.join(limits)}" if limits else ""
