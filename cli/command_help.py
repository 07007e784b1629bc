"""How a command shows its help; its module is imported only when it is used.

Help is plain text in sections, at most 80 columns wide, the same on a terminal and in a pipe: the
section of an option is its `rich_help_panel`, and examples are at the end.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from .commands import COMMANDS, Entry

if TYPE_CHECKING:
    # Typer carries its own copy of click.
    from typer._click import Context, HelpFormatter

_ARGUMENTS, _OPTIONS = "Arguments", "Options"


class SectionedCommand(TyperCommand):
    """A command with its options in sections and its examples at the end of its help."""

    examples: tuple[str, ...] = ()

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Arguments, then options without a section, then one section after the other."""
        sections: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
        for parameter in self.get_params(ctx):
            shown = parameter.get_help_record(ctx)
            if shown is None:
                continue
            name, text = shown
            if parameter.param_type_name == "argument":
                # The name says what it is, so its type is left out.
                sections[_ARGUMENTS].append((name.partition(" ")[0], text))
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            sections.setdefault(panel or _OPTIONS, []).append((_with_plain_type(name), text))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The examples, each on a line of its own that can be copied."""
        del ctx
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

    def invoke(self, ctx: Context) -> Any:  # noqa: ANN401 - as in click
        """Import the plugins, then run the command."""
        _load_plugins(ctx)
        return super().invoke(ctx)


def _with_plain_type(name: str) -> str:
    """`<int range>` as `<int>`; `<list[a|b]>`, of a repeatable option, as `<a|b> ...`."""
    return re.sub(r"<list\[(.+)\]>$", r"<\1> ...", name.replace(" range>", ">"))


class LazyCommand(TyperCommand):
    """Stands for a command in lists; imports its module when the command line is parsed."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name, help=entry.summary, rich_help_panel=entry.panel)
        self._entry = entry

    def load(self) -> SectionedCommand:
        """The command itself."""
        module, _, function = self._entry.target.partition(":")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        command = getattr(importlib.import_module(f".{module}", __package__), function)
        app.command(self._entry.name, cls=SectionedCommand)(command)
        loaded = get_command(app)
        if not isinstance(loaded, SectionedCommand):
            raise TypeError(f"{self._entry.target} is no command.")
        loaded.examples = self._entry.examples
        return loaded

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Context | None = None,
        **extra: Any,  # noqa: ANN401 - as in click
    ) -> Context:
        """The context of the command itself, which is the one that then runs."""
        return self.load().make_context(info_name, args, parent, **extra)


class CommandGroup(TyperGroup):
    """All commands, listed by purpose."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as in click
        super().__init__(**arguments)
        for entry in COMMANDS:
            self.add_command(LazyCommand(entry))

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """One section for each panel; the columns of all sections are aligned."""
        del ctx
        width = max(len(entry.name) for entry in COMMANDS)
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS):
            with formatter.section(panel):
                formatter.write_dl(
                    [(f"{e.name:{width}}", e.summary) for e in COMMANDS if e.panel == panel]
                )


def _load_plugins(ctx: Context) -> None:
    from fusestore.errors import NotFoundError
    from fusestore.plugins import environment_plugins, load_entry_points, load_plugins

    load_entry_points()
    load_plugins(environment_plugins())
    root = ctx.find_root()
    try:
        load_plugins(root.params.get("_plugin") or ())
    except NotFoundError as error:
        raise typer.BadParameter(str(error), ctx=root, param_hint="--plugin") from error
