"""Command lines of console blocks: taken out of a block, and parsed without being run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.doc_blocks import ROOT

OTHERS = ("cc", "lm_eval", "pre-commit", "vllm")
"""Programs of other packages; what they accept is theirs to say."""


@dataclass(frozen=True)
class Line:
    """One command of a console block.

    Attributes:
        text: the command, its continued lines joined.
        output: the lines that follow it, where the block has a prompt, `$ ` or `HOST$ `, before
            its commands.
    """

    text: str
    output: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Program and arguments, without comment and assignments of the environment."""
        words = shlex.split(self.text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        return words

    @property
    def expanded(self) -> list[str]:
        """`words`, with the patterns of files that are not quoted expanded as a shell does it."""
        quoted = set(re.findall(r"'([^']*)'", self.text))
        found: list[str] = []
        for word in self.words:
            pattern = "*" in word and word not in quoted
            found += sorted(map(str, Path().glob(word))) if pattern else [word]
        return found


def lines(text: str) -> list[Line]:
    """The commands of a console block: all its lines, or those with a prompt."""
    joined = text.replace("\\\n", " ").splitlines()
    joined = [re.sub(r"^\w+\$ ", "$ ", line) for line in joined]
    prompted = any(line.startswith("$ ") for line in joined)
    found: list[tuple[str, list[str]]] = []
    for line in joined:
        if not prompted:
            if line.strip() and not line.startswith("#"):
                found.append((line, []))
        elif line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return [Line(command, tuple(output)) for command, output in found]


def check(line: Line) -> None:
    """Raise an error, with what is wrong, unless the command could be run."""
    program, *arguments = line.words
    if program == "fusestore":
        parse(arguments)
    elif program in ("torchrun", "srun"):
        if "fusestore" in arguments:
            parse(arguments[arguments.index("fusestore") + 1 :])
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        missing = [
            name
            for name in arguments
            if "=" not in name and not re.search(rf"^{name}:", makefile, re.MULTILINE)
        ]
        assert not missing, f"no target {missing} in the Makefile"
    elif program == "python":
        _check_script(arguments)
    elif program in ("pip", "uv"):
        extras = [name for word in arguments for name in re.findall(r"fusestore\[(.*)\]", word)]
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        missing = [
            extra
            for extra in ",".join(extras).split(",")
            if extra and extra not in known["optional-dependencies"]
        ]
        assert not missing, f"no extra {missing} in pyproject.toml"
    elif "/" in program:
        assert (ROOT / program).is_file(), f"no file {program}"
    else:
        assert program in OTHERS, f"no known program {program}"


def parse(arguments: list[str]) -> None:
    """Parse arguments as `fusestore` does, up to where the command would begin."""
    import typer
    from fusestore_cli.app import app

    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.make_context("fusestore", arguments) as context:
        rest = [*context._protected_args, *context.args]
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None, arguments
        command.make_context(name, rest, parent=context)


def _check_script(arguments: list[str]) -> None:
    """A script or module of the repository; its source has each option."""
    if arguments[0] == "-m":
        module, arguments = arguments[1], arguments[1:]
        file = ROOT / f"{module.replace('.', '/')}.py"
    else:
        file = ROOT / arguments[0]
    assert file.is_file(), f"no file {file.relative_to(ROOT)}"
    source = file.read_text(encoding="utf-8")
    missing = [
        word for word in arguments if re.match("--?[a-z]", word) and f'"{word}"' not in source
    ]
    assert not missing, f"no option {missing} in {file.relative_to(ROOT)}"


def scripts(text: str) -> Iterator[str]:
    """Scripts and modules of the repository that a text names."""
    yield from re.findall(r"\b(?:benchmarks|experiments)/\w+\.py", text)
