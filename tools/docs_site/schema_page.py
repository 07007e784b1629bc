"""Reference of the JSON documents: each schema of schemas/, what it describes, and its fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .links import ROOT
from .tables import code, entry, one_line, table, type_text

PAGE = "reference/json-schemas.md"
FOLDER = ROOT / "schemas"

_SECTIONS: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("What people write", lambda name, comment: name in ("fusion", "recipe")),
    ("What commands print with `--json`", lambda name, comment: "--json" in comment),
    ("What a store holds", lambda name, comment: True),
)


def schema_page() -> str:
    """The Markdown of the page."""
    schemas = {file.stem: json.loads(file.read_bytes()) for file in sorted(FOLDER.glob("*.json"))}
    tables = schemas.pop("tables")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    parts = ["# What do the JSON documents and tables hold?", readme.partition("\n")[2].strip()]
    left = dict(schemas)
    grouped: list[tuple[str, dict[str, Any]]] = []
    for title, belongs in _SECTIONS:
        chosen = {name: each for name, each in left.items() if belongs(name, each["$comment"])}
        left = {name: each for name, each in left.items() if name not in chosen}
        grouped.append((title, chosen))
    for title, chosen in grouped:
        rows = [(f"[`{name}`](#{name})", f"{_place(each)}") for name, each in chosen.items()]
        parts += [f"## {title}", table(["Schema", "Describes"], rows)]
        for name, each in chosen.items():
            parts += _schema_section(name, each)
    parts += ["## Parquet tables { #tables }", *_parquet_tables(tables)]
    return "\n\n".join(parts)


def raw_schemas() -> Iterator[tuple[str, bytes]]:
    """Path on the site and content of each schema, for programs."""
    for file in sorted(FOLDER.glob("*.json")):
        yield f"schemas/{file.name}", file.read_bytes()


def _place(schema: dict[str, Any]) -> str:
    """The file that a schema describes, or when its document is printed."""
    comment: str = schema["$comment"]
    return f"`{comment}`" if "/" in comment and "`" not in comment else one_line(comment)


def _schema_section(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### `{name}` {{ #{name} }}"
    described = one_line(schema.get("description", ""))
    # Some descriptions say it too.
    place = "" if schema["$comment"].lower() in described.lower() else f" {_place(schema)}"
    yield f"{described}{place} [Schema](../schemas/{name}.json)."
    if name == "fusion":
        yield "Its keys are on [a page of their own](fusion-toml.md)."
        return
    definitions = schema.get("$defs", {})
    shown = {
        key: f"{name}-{key.lower()}" for key, each in definitions.items() if each.get("properties")
    }

    def reference(definition: str) -> str:
        if definition in shown:
            return f"[{definition}](#{shown[definition]})"
        return type_text(definitions[definition], reference)

    yield "\n".join(_fields(name, schema, reference))
    for key, anchor in shown.items():
        yield f"**{key}**{{ #{anchor} }}: {one_line(definitions[key].get('description', ''))}"
        yield "\n".join(_fields(anchor, definitions[key], reference))


def _fields(prefix: str, schema: dict[str, Any], reference: Any) -> Iterator[str]:  # noqa: ANN401
    required = schema.get("required", [])
    for key, content in schema.get("properties", {}).items():
        notes = "" if key in required else " *may be absent*"
        default = content.get("default")
        if key not in required and default is not None:
            notes = f" *default {code(default)}*"
        described = one_line(content.get("description", ""))
        kind = type_text(content, reference)
        yield entry(f"`{key}` — {kind}", f"{prefix}.{key}", (described + notes) or "&nbsp;")


def _parquet_tables(tables: dict[str, Any]) -> Iterator[str]:
    yield (
        "Columns of every Parquet table of a store. [`tables.json`](../schemas/tables.json) has "
        "the same for programs."
    )
    for name, content in tables.items():
        yield f"### `{name}` {{ #table-{name} }}"
        yield f"`{content['file']}`; one row is {content['row']}."
        yield table(
            ["Column", "Type", "Meaning"],
            [
                (f"`{column['name']}`", _column_type(column), one_line(column["meaning"]))
                for column in content["columns"]
            ],
        )


def _column_type(column: dict[str, Any]) -> str:
    text = str(column["dtype"])
    if "values" in column:
        text = ", ".join(code(value) for value in column["values"])
    elif "fields" in column:
        fields = ", ".join(f"{key}: {kind}" for key, kind in column["fields"].items())
        text = f"list of ({fields})"
    elif "items" in column:
        text = f"list of {column['items']}"
    return f"{text} or null" if column["nullable"] else text
