"""The fusion.toml of a distillation: one teacher, one student, any tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

from fusestore.errors import AlreadyExistsError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_beside
from fusestore.store.manifest import Frozen
from fusestore.store.settings_file import toml_value

TEACHER, STUDENT = "teacher", "student"


class WrittenFusion(Frozen):
    """What `fusestore distill` and `demo` print with --dry-run --json.

    Attributes:
        file: the fusion.toml that was written, or was there with the same text.
    """

    file: str


def distillation_toml(
    teacher: str, student: str, data: Sequence[str], store: str, held_out_fraction: float
) -> str:
    """The text of a fusion.toml that trains `student` on `data` and the rows of `teacher`.

    Args:
        teacher: a folder, hub id, `.gguf` file or `package:NAME`.
        student: the same.
        data: files, patterns, folders or URLs of text.
        store: folder or URL.
        held_out_fraction: share of the documents on which the student is scored; 0: none.
    """
    evaluated = held_out_fraction > 0
    lines = [
        "# One teacher, one student. `fusestore run` with this file makes what is missing.",
        "# `fusestore init` writes a file with every setting that may stand here.",
        f"store = {toml_value(store)}",
        *(['evaluate_split = "held_out"'] if evaluated else []),
        "",
        "[corpus]",
        f"inputs = {toml_value(list(data))}",
        *([f"held_out_fraction = {held_out_fraction!r}"] if evaluated else []),
        "",
        f"[models.{TEACHER}]",
        f"model = {toml_value(teacher)}",
        "",
        f"[models.{STUDENT}]",
        f"model = {toml_value(student)}",
        "",
        "[fuse]",
        'name = "distilled"',
        f'sources = ["{TEACHER}"]',
        f'target = "{STUDENT}"',
        'strategy = "single"',
        "",
        "[train.runs.distilled]",
        "",
        "# What the teacher is worth shows beside a student of the same text alone:",
        "#[train.runs.text_alone]",
        '#objective = "clm"',
    ]
    return "\n".join(lines) + "\n"


def write_once(file: str, text: str, other: str = "--file") -> None:
    """Write a file, or find the same text in it.

    Args:
        file: its path or URL.
        text: its content.
        other: option with which the command writes another file, for the message.

    Raises:
        AlreadyExistsError: it has another text, which was left as it is.
    """
    location = Location.parse(file)
    try:
        existing = location.read_bytes().decode("utf-8", "replace")
    except NotFoundError:
        publish_beside(location, text.encode())
        return
    if existing != text:
        raise AlreadyExistsError(
            f"{file} has other settings than this command, and was left as it is. Run it with "
            f"`fusestore run {file}`, or write another one with {other}."
        )
