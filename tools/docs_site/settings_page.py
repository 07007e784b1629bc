"""Reference of fusion.toml: every key, from schemas/fusion.json and the settings classes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from cli.command_help import LazyCommand
from cli.commands import COMMANDS
from cli.field_options import SettingOption
from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.fuse.recipe import Recipe, RecipeSource
from fusestore.merge.settings import MergeSettings
from fusestore.train.settings import LoraSettings, TrainSettings
from fusestore.workflows.fusion_config import (
    CorpusConfig,
    FuseConfig,
    FusionConfig,
    MergeConfig,
    ModelConfig,
    TrainConfig,
)

from .links import ROOT
from .tables import code, entry, one_line, type_text

PAGE = "reference/fusion-toml.md"


class _Table(NamedTuple):
    """One table of the file.

    Attributes:
        title: as the file writes it.
        prefix: of the anchors of its keys.
        definition: its name in the schema.
        command: whose options have the same settings.
        shares: title of the table whose keys it may have too, which are not shown again.
        text: what is said before its keys.
    """

    title: str
    prefix: str
    definition: str
    command: str = ""
    shares: str = ""
    text: str = ""


_TABLES = (
    _Table("[corpus]", "corpus", "CorpusConfig", "corpus"),
    _Table(
        "[capture]",
        "capture",
        "CaptureSettings",
        "capture",
        text="Shared by all models; a key in `[models.NAME]` goes before it.",
    ),
    _Table("[models.NAME]", "models", "ModelTable", shares="[capture]"),
    _Table("[align]", "align", "AlignSettings", "align"),
    _Table("[fuse]", "fuse", "FuseTable", "fuse"),
    _Table(
        "[[fuse.sources]]",
        "sources",
        "RecipeSource",
        text="A source as a table, where its name alone does not say enough.",
    ),
    _Table("[fuse.datasets.NAME]", "datasets", "FusedDatasetTable", shares="[fuse]"),
    _Table(
        "[train]",
        "train",
        "TrainTable",
        "train",
        text="Shared by all runs; a key in `[train.runs.NAME]` goes before it.",
    ),
    _Table("[train.lora]", "train-lora", "LoraSettings", "train"),
    _Table("[train.runs.NAME]", "runs", "TrainRunTable", shares="[train]"),
    _Table("[merge.NAME]", "merge", "MergeTable", "merge"),
)


# The schema's keys are in the order of the alphabet; the classes have them in that of their use.
_ORDER = list(
    dict.fromkeys(
        name
        for settings in (
            *(FusionConfig, CorpusConfig, ModelConfig, FuseConfig, TrainConfig, MergeConfig),
            *(RecipeSource, CaptureSettings, AlignSettings, Recipe, TrainSettings),
            *(LoraSettings, MergeSettings),
        )
        for name in settings.model_fields
    )
)


@functools.cache
def _schema() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "schemas/fusion.json").read_bytes())
    return content


def setting_anchor(command: str, path: tuple[str, ...]) -> str | None:
    """The anchor on this page of the setting that an option of a command has, if it has one."""
    for section in _TABLES:
        inner = path[1:] if section.prefix == f"{section.command}-{path[0]}" else path
        if section.command != command or len(inner) != 1:
            continue
        if inner[0] in _schema()["$defs"][section.definition]["properties"]:
            return f"{section.prefix}-{inner[0]}"
    return None


def settings_page() -> str:
    """The Markdown of the page."""
    schema = _schema()
    top = {name: content for name, content in schema["properties"].items() if _is_key(content)}
    parts = [
        "# Which keys does a fusion.toml have?",
        "`fusestore run` reads the file, and `fusestore init` writes one with every key. The whole "
        "file is checked before anything is done; a misspelt key is an error that suggests the "
        "right one. The same file may be written as JSON. Its JSON Schema is "
        "[`fusion.json`](json-schemas.md#fusion).",
        "## At the top",
        "\n".join(_entries("top", top, schema["required"], {}, "")),
    ]
    for section in _TABLES:
        parts += [f"## `{section.title}`", *_section(section)]
    return "\n\n".join(parts)


def _section(section: _Table) -> Iterator[str]:
    definition = _schema()["$defs"][section.definition]
    yield one_line(definition["description"])
    if section.text:
        yield section.text
    properties = definition["properties"]
    if section.shares:
        shared = next(each for each in _TABLES if each.title == section.shares)
        known = _schema()["$defs"][shared.definition]["properties"]
        properties = {name: content for name, content in properties.items() if name not in known}
        anchor = _heading(section.shares)
        yield (
            f"It may have each key of [`{section.shares}`](#{anchor}) too"
            f"{', and these:' if properties else '.'}"
        )
    options = _options(section.command) if section.command else {}
    if section.prefix == "train-lora":
        options = {name.removeprefix("lora_"): each for name, each in options.items()}
    yield "\n".join(
        _entries(
            section.prefix, properties, definition.get("required", []), options, section.command
        )
    )


def _entries(
    prefix: str,
    properties: dict[str, Any],
    required: list[str],
    options: dict[str, SettingOption],
    command: str,
) -> Iterator[str]:
    for name in sorted(properties, key=lambda name: (name not in required, _place(name))):
        content = properties[name]
        notes = []
        if name in required:
            notes.append("required")
        elif content.get("default") is not None:
            notes.append(f"default {code(content['default'])}")
        if name in options:
            flag = options[name].name
            notes.append(f"option [`{flag}`](commands/{command}.md#{flag.lstrip('-')})")
        joined = f" *{'; '.join(notes)}*" if notes else ""
        kind = type_text(content, _reference, null="")
        yield entry(
            f"`{name}` — {kind}",
            f"{prefix}-{name}",
            one_line(content.get("description", "")) + joined,
        )


def _reference(definition: str) -> str:
    for section in _TABLES:
        if section.definition == definition:
            return (
                f"table [`{section.title}`](#{section.title.strip('[]').replace('.', '').lower()})"
            )
    return "table"


def _heading(title: str) -> str:
    """The anchor of a table's section."""
    return title.strip("[]").replace(".", "").lower()


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _is_key(content: dict[str, Any]) -> bool:
    """Whether it is a key at the top, not a table with a section of its own."""
    return "$ref" not in content and "$ref" not in json.dumps(content)


def _options(command: str) -> dict[str, SettingOption]:
    (item,) = (item for item in COMMANDS if item.name == command)
    callback = LazyCommand(item).load().callback
    return {option.parameter: option for option in getattr(callback, "setting_options", ())}
