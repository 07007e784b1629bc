"""Reads the documents of all inputs of a corpus.

Documents are in the order of the inputs, then of their names, then of the rows of a table. The
source of a document is its path relative to the input's folder or pattern, never an absolute path
or a URL, so that a corpus reveals neither where it was made nor the signature of a URL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from fusestore.corpus.conversation_forms import InputForm
from fusestore.corpus.input_files import InputFile, find_input_files, printable
from fusestore.corpus.input_rows import Columns, read_rows
from fusestore.corpus.saved_dataset import SPLIT_COLUMN
from fusestore.corpus.splits import HeldOut, assign_split
from fusestore.errors import InvalidInputError
from fusestore.storage.location import Location
from fusestore.storage.replace import scratch_folder
from fusestore.storage.retries import storage_errors

DOCUMENT_SCHEMA = pl.Schema(
    {
        "source": pl.String(),
        "text": pl.String(),
        "split": pl.String(),
        "conversation": pl.String(),
    }
)

Input = str | os.PathLike[str] | Location
"""A file, a pattern, a folder, or a URL of one of these."""


def read_documents(
    inputs: Input | Sequence[Input],
    *,
    text_column: str = "text",
    split_column: str | None = None,
    form: InputForm = "auto",
    keep_white_space: bool = False,
    held_out: Sequence[HeldOut] = (),
    storage_options: Mapping[str, object] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> pl.DataFrame:
    """Read every document of the inputs.

    Args:
        inputs: one or several files, glob patterns, folders or URLs.
        text_column: column (or JSON key) that holds the text, in tables.
        split_column: column that names the split, in tables. `held_out` decides for text files,
            and for tables if this is None.
        form: of the documents in tables: texts, or a form of conversations.
        keep_white_space: of conversations; see `Conversation`.
        held_out: rules by source name; the first rule that matches a document decides, `train` is
            the default.
        storage_options: for the filesystem of remote inputs that are no `Location`.
        report: receives a line on the files of an input that are not read.

    Returns:
        `source`, `text`, `split`, `conversation` (JSON; null for a text), one row per document. The
        source of a row of a table is the file's name, `#` and the row's number from 0.

    Raises:
        NotFoundError: an input that matches no file.
        InvalidInputError: no text column, a null or non-text value in it, a damaged file or one of
            another format, two files of one name, a record that is no conversation, conversations
            among texts, or no document at all.
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike | Location) else list(inputs)
    columns = Columns(text_column, split_column, form, keep_white_space)
    sources: list[str] = []
    texts: list[str] = []
    splits: list[str] = []
    conversations: list[str | None] = []
    seen: dict[str, Location] = {}
    for item in inputs:
        location = Location.parse(item, storage_options)
        found = find_input_files(location)
        if line := found.describe_skipped(location.url):
            report(line)
        for file in found.files:
            if (other := seen.setdefault(file.source, file.location)) is not file.location:
                raise InvalidInputError(
                    f"Two input files go by the name {file.source!r}: {printable(other.url)} and "
                    f"{printable(file.location.url)}. Leave one out, or give the folder above "
                    "both, or a pattern that begins with that folder, so that their names differ."
                )
            if file.split is not None and split_column is None and not held_out:
                raise InvalidInputError(
                    f"{printable(location.url)} holds a saved dataset of several splits. Keep "
                    f"them by the split column {SPLIT_COLUMN!r}, give held-out rules, or give the "
                    "folder of one split."
                )
            with _local_copy(file) as path:
                for source, text, split, conversation in read_rows(file, path, columns):
                    sources.append(source)
                    texts.append(text)
                    splits.append(split if split is not None else assign_split(source, held_out))
                    conversations.append(None if conversation is None else conversation.to_json())
                    if (conversation is None) != (conversations[0] is None):
                        raise InvalidInputError(
                            f"{source} is {'a text' if conversation is None else 'a conversation'},"
                            f" but {sources[0]} is not. Make a corpus of each."
                        )
    if not sources:
        names = ", ".join(printable(str(item)) for item in inputs) or "no input at all"
        raise InvalidInputError(f"The corpus is empty: {names} held no document.")
    return pl.DataFrame(
        {"source": sources, "text": texts, "split": splits, "conversation": conversations},
        schema=DOCUMENT_SCHEMA,
    )


@contextlib.contextmanager
def _local_copy(file: InputFile) -> Iterator[Path]:
    """The file on this machine, for as long as it is read."""
    if file.location.is_local:
        with storage_errors(file.location):
            yield file.location.path
        return
    with scratch_folder("input") as folder:
        copy = folder / "input"
        file.location.download(copy)
        yield copy
