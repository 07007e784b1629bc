"""Reference of the command line, made of the commands: its texts are those of `--help`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import typer.core

from cli.app import app
from cli.command_help import LazyCommand, SectionedCommand
from cli.commands import COMMANDS, Entry

from .links import ROOT
from .settings_page import setting_anchor
from .tables import entry, table

_EXTRA = re.compile(r"  \[([^][]*)\]$")

_ENVIRONMENT = (
    (
        "FUSESTORE_HOME",
        "Folder for models and texts that were converted or unpacked, and for parts of remote "
        "stores. By default `fusestore` in the user's cache folder.",
    ),
    ("FUSESTORE_PLUGINS", "Python modules to import first, separated by commas, as `--plugin`."),
    ("FUSESTORE_SERVER_KEY", "Key that `capture` sends to servers of vLLM and SGLang."),
    (
        "AWS_*",
        "Credentials, region and endpoint of `s3://` addresses, as for the AWS command line.",
    ),
    ("HF_TOKEN", "Token for `hf://` addresses and for hub models that need one."),
)

_EXIT_CODES = (
    ("0", "The command is done; what was there already counts as done."),
    ("1", "It failed, and the message says why and what to do. What was finished is kept."),
    ("2", "It was called in a wrong way: an option, a name or a path. Nothing was begun."),
)


def command_pages() -> Iterator[tuple[str, str]]:
    """Source path and Markdown of each page: an overview, and one for each command."""
    yield "reference/commands/index.md", _overview()
    schemas = _output_schemas()
    for item in COMMANDS:
        yield f"reference/commands/{item.name}.md", _command_page(item, schemas)


def command_navigation() -> list[dict[str, str] | str]:
    """The pages in the order of `fusestore --help`."""
    pages = [{item.name: f"reference/commands/{item.name}.md"} for item in COMMANDS]
    return ["reference/commands/index.md", *pages]


def _overview() -> str:
    group = typer.main.get_command(app)
    parts = ["# Which commands are there?", str(app.info.help)]
    parts.append("```console\nfusestore [OPTIONS] COMMAND [ARGUMENTS]\n```")
    for panel in dict.fromkeys(item.panel for item in COMMANDS):
        rows = [
            (f"[`{item.name}`]({item.name}.md)", item.summary)
            for item in COMMANDS
            if item.panel == panel
        ]
        parts += [f"## {panel}", table(["Command", "What it does"], rows)]
    parts += ["## Options before the command", *_options(group, {}, "Options").values()]
    parts += [
        "## Environment variables",
        table(["Variable", "Meaning"], [(f"`{name}`", text) for name, text in _ENVIRONMENT]),
        "## Exit codes",
        table(["Code", "Meaning"], _EXIT_CODES),
    ]
    return "\n\n".join(parts)


def _command_page(item: Entry, schemas: dict[str, list[str]]) -> str:
    command = LazyCommand(item).load()
    context = command.make_context(f"fusestore {item.name}", [], resilient_parsing=True)
    usage = command.get_usage(context).partition(": ")[2]
    parts = [f"# `fusestore {item.name}`", _prose(command.help or "")]
    parts.append(f"```console\n{' '.join(usage.split())}\n```")
    parts += ["## Examples", f"```console\n{chr(10).join(item.examples)}\n```"]
    for title, content in _options(command, _settings_anchors(command), "Options").items():
        parts += [f"## {title}", content]
    if item.name in schemas:
        names = [f"[`{name}`](../json-schemas.md#{name})" for name in schemas[item.name]]
        parts += ["## What it prints with `--json`", f"Schema: {', '.join(names)}."]
    parts += [
        "## Exit codes",
        "0 done, 1 a failure that is explained, 2 wrong usage: see "
        "[all commands](index.md#exit-codes).",
    ]
    return "\n\n".join(parts)


def _options(
    command: Any,  # noqa: ANN401 - a command of Typer's own copy of click
    anchors: dict[str, str],
    title: str,
) -> dict[str, str]:
    """Entries of arguments and options by section, in the order of `--help`."""
    context = command.make_context("fusestore", [], resilient_parsing=True)
    sections: dict[str, list[str]] = {"Arguments": [], title: []}
    for parameter in command.get_params(context):
        shown = parameter.get_help_record(context)
        if shown is None or parameter.name == "help":
            continue
        term, text = shown
        is_argument = parameter.param_type_name == "argument"
        section = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None)
        sections.setdefault(section or title, []).append(
            _entry(parameter, term, text, anchors, is_argument)
        )
    return {name: "\n".join(entries) for name, entries in sections.items() if entries}


def _entry(
    parameter: Any,  # noqa: ANN401
    term: str,
    text: str,
    anchors: dict[str, str],
    is_argument: bool,
) -> str:
    extra = _EXTRA.search(text)
    facts = [fact for fact in (extra[1].split("; ") if extra else []) if fact]
    described = _prose(_EXTRA.sub("", text))
    name, _, kind = term.partition(" ")
    if is_argument:
        kind = "" if kind.startswith("<str") or kind == "<path>" else kind
        anchor = name.lower()
    else:
        kind = term[max(term.find(flag) + len(flag) for flag in parameter.opts) :].strip()
        kind = "" if kind.startswith("/") else kind
        anchor = max(parameter.opts, key=len).lstrip("-")
        name = ", ".join(f"`{flag}`" for flag in sorted(parameter.opts, key=len, reverse=True))
        if parameter.secondary_opts:
            name += f" / `{parameter.secondary_opts[0]}`"
    shown = name if name.startswith("`") else f"`{name}`"
    if kind:
        shown += f" `{_plain_type(kind)}`"
    notes = [_fact(fact) for fact in facts]
    if parameter.name in anchors:
        notes.append(f"in a fusion.toml [`{parameter.name}`]({anchors[parameter.name]})")
    joined = f" *{'; '.join(notes)}*" if notes else ""
    return entry(shown, anchor, described + joined)


def _fact(fact: str) -> str:
    name, separator, value = fact.partition(": ")
    return f"{name} `{value}`" if separator else fact.replace("x>=", "≥ ").replace("x<=", "≤ ")


def _plain_type(kind: str) -> str:
    kind = re.sub(r"<list\[(.+)\]>$", r"<\1> ...", kind.replace(" range>", ">"))
    return kind.replace("|", " | ")


def _prose(text: str) -> str:
    """The text as Markdown: options are code, and a name in angle brackets is no HTML."""
    text = inspect.cleandoc(text)
    text = re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)(?![`\w])", r"`\1`", text)
    text = re.sub(r"\bdocs/([\w-]+)\.md\b", r"[\1](../../\1.md)", text)
    return text.replace("<", "&lt;") if "`" not in text else text


def _settings_anchors(command: SectionedCommand) -> dict[str, str]:
    """Where the page about fusion.toml has a command's settings, by the name of its parameter."""
    name = command.name or ""
    options = getattr(command.callback, "setting_options", ())
    found = {}
    for option in options:
        anchor = setting_anchor(name, option.path)
        if anchor:
            found[option.parameter] = f"../fusion-toml.md#{anchor}"
    return found


def _output_schemas() -> dict[str, list[str]]:
    """Names of the schemas of what commands print, by command: the schemas name their commands."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "schemas").glob("*.json")):
        comment = json.loads(file.read_bytes()).get("$comment", "")
        if "--json" not in comment:
            continue
        for name in (item.name for item in COMMANDS):
            if re.search(rf"`(?:fusestore )?{name}[ `]", comment):
                found.setdefault(name, []).append(file.stem)
    return found
