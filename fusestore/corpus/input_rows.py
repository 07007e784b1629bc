"""Reads the documents of one file, in memory that grows with its texts only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from fusestore.corpus.conversation_forms import ConversationForm, InputForm, find_form
from fusestore.corpus.decoded_text import (
    MAX_DOCUMENT,
    DecodedText,
    first_surrogate,
    whole_text,
)
from fusestore.corpus.input_files import InputFile, printable
from fusestore.corpus.input_format import ARROW, DELIMITERS, JSON, PARQUET, unpacked
from fusestore.corpus.json_stream import JsonError, JsonStream
from fusestore.corpus.saved_dataset import SPLIT_COLUMN
from fusestore.errors import InvalidInputError
from fusestore.tokenizers.conversation import Conversation

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Ends an Arrow stream. Without it a stream that lacks its last batches looks like a whole one."""

_TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum, pl.Null)


class Columns(NamedTuple):
    """What is read of tables and JSON.

    Attributes:
        text: name of the column or key of the text.
        split: of the split, if there is one.
        form: how it is read.
        keep_white_space: of conversations; see `Conversation`.
    """

    text: str
    split: str | None
    form: InputForm = "auto"
    keep_white_space: bool = False

    def form_of(self, found: Sequence[str]) -> ConversationForm | None:
        """The form of conversations of a table with these columns; None for texts."""
        return find_form(self.form, found, self.text)

    def are_in(self, found: Sequence[str]) -> bool:
        """Whether a record with these keys is a document."""
        form = self.form_of(found)
        return set([self.text] if form is None else form.needed) <= set(found)

    def names(self, found: Sequence[str]) -> list[str]:
        """The columns to read of a table with these columns, and those that it lacks."""
        form = self.form_of(found)
        if form is None:
            names = [self.text]
        else:
            names = [*form.needed, *(name for name in form.others if name in found)]
        return list(dict.fromkeys(names if self.split is None else [*names, self.split]))


class Row(NamedTuple):
    """A document of a file.

    Attributes:
        source: the file's name; for a row of a table `#` and its number from 0 follow.
        text: its text.
        split: None if rules decide.
        conversation: what the text stands for, if it is a chat.
    """

    source: str
    text: str
    split: str | None
    conversation: Conversation | None = None


def read_rows(file: InputFile, path: Path, columns: Columns) -> Iterator[Row]:
    """The documents of a file.

    Args:
        file: what is read, and its name.
        path: a local copy of it.
        columns: of tables and JSON.

    Raises:
        InvalidInputError: the file is damaged, no text, of another format, or lacks a column or
            a value.
        OSError: the file cannot be read.
    """
    suffix = file.format.suffix
    if suffix in PARQUET or suffix in ARROW:
        yield from _table_rows(file, path, columns)
        return
    name = printable(file.location.name)
    with unpacked(path, file.format.compression, name) as data:
        if suffix in JSON:
            yield from _record_rows(file, columns, _json_records(file, data, columns))
        elif suffix in DELIMITERS:
            yield from _record_rows(file, columns, _delimited_records(file, data, columns))
        else:
            yield Row(file.source, whole_text(data, file.source), None)


def _record_rows(
    file: InputFile, columns: Columns, records: Iterator[tuple[int, Mapping[str, object]]]
) -> Iterator[Row]:
    """Documents of records, which come with the line on which they begin."""
    form: ConversationForm | None = None
    for row, (line, record) in enumerate(records):
        if row == 0:
            form = columns.form_of(list(record))
            _check_columns(file, columns.names(list(record)), list(record))
        split = None if columns.split is None else _value(file, line, record, columns.split)
        source = f"{file.source}#{row}"
        if form is None:
            yield Row(source, _value(file, line, record, columns.text), split)
        else:
            place = f"Line {line} of {file.source}"
            yield _conversation_row(source, place, form, columns, record, split)


def _conversation_row(
    source: str,
    place: str,
    form: ConversationForm,
    columns: Columns,
    record: Mapping[str, object],
    split: str | None,
) -> Row:
    """The document of a record of a form of conversations, which `place` names in messages."""
    for name in form.needed:
        if record.get(name) is None:
            raise InvalidInputError(f"{place} has no value in {name!r}. Remove or fill such rows.")
    try:
        conversation = form.read(record, keep_white_space=columns.keep_white_space)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}, a record of the form {form.name}: {error}.") from error
    if (position := first_surrogate(conversation.to_json())) is not None:
        code = ord(conversation.to_json()[position])
        raise InvalidInputError(f"{place} holds the lone surrogate U+{code:04X}; remove it.")
    return Row(source, conversation.text, split, conversation)


def _value(file: InputFile, line: int, record: Mapping[str, object], name: str) -> str:
    value = record.get(name)
    if value is None and name == SPLIT_COLUMN and name not in record and file.split is not None:
        return file.split
    if value is None:
        raise InvalidInputError(
            f"Line {line} of {file.source} has no value in {name!r}. Remove or fill such rows."
        )
    if not isinstance(value, str):
        raise InvalidInputError(
            f"Line {line} of {file.source} has {_shortened(value)} in {name!r}, not text."
        )
    # JSON can escape half a surrogate pair, which UTF-8 cannot hold.
    if (position := first_surrogate(value)) is not None:
        raise InvalidInputError(
            f"Line {line} of {file.source} holds the lone surrogate "
            f"U+{ord(value[position]):04X} at character {position}; remove it."
        )
    return value


def _json_records(
    file: InputFile, data: io.BufferedReader, columns: Columns
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Objects: values one after another, of an array, or of an array named `data`."""
    try:
        for line, value in JsonStream(DecodedText(data, file.source).read, MAX_DOCUMENT).values():
            records = [value]
            if isinstance(value, dict) and not columns.are_in(list(value)):
                nested = value.get("data")
                records = nested if isinstance(nested, list) else records
            for record in records:
                if not isinstance(record, dict):
                    raise InvalidInputError(
                        f"Line {line} of {file.source} is not a JSON object but "
                        f"{_shortened(record)}."
                    )
                yield line, record
    except JsonError as error:
        raise InvalidInputError(
            f"Line {error.line} of {file.source} is not JSON: {error}."
        ) from error


def _delimited_records(
    file: InputFile, data: io.BufferedReader, columns: Columns
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Rows of `.csv` and `.tsv`, whose first line names the columns."""
    text = DecodedText(data, file.source)
    lines = iter(text.readline, "")
    # The limit is one of the module, and its default is below the length of many documents.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_DOCUMENT))
    rows = csv.reader(lines, delimiter=DELIMITERS[file.format.suffix], strict=True)
    begins = 1
    try:
        header = next(rows, [])
        _check_columns(file, columns.names(header), header)
        begins = rows.line_num + 1
        for cells in rows:
            if len(cells) not in (0, len(header)):
                raise InvalidInputError(
                    f"Line {begins} of {file.source} has cells for {len(cells)} columns, but the "
                    f"first line names {len(header)}. Quote cells that hold the delimiter."
                )
            if cells:
                record: dict[str, str | None] = dict(zip(header, cells, strict=True))
                # Text may be empty, a name may not.
                if columns.split is not None and record.get(columns.split) == "":
                    record[columns.split] = None
                yield begins, record
            begins = rows.line_num + 1
    except csv.Error as error:
        raise InvalidInputError(
            f"Line {begins} of {file.source} could not be read: {error}."
        ) from error


def _table_rows(file: InputFile, path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of Parquet and Arrow files, of which only the columns asked for are loaded."""
    try:
        # Without a buffer, because Polars reads on where the file itself stands.
        with path.open("rb", buffering=0) as data:
            table = _table(file, data, columns)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        # Polars reports a file that ends too early as an OSError without the system's number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidInputError(
            f"{file.source} could not be read as {file.format.suffix}: it is damaged, cut off, or "
            f"of another kind ({error})."
        ) from error
    form = columns.form_of(table.columns)
    if form is not None:
        for row, record in enumerate(table.iter_rows(named=True)):
            source, place = f"{file.source}#{row}", f"Row {row} of {file.source}"
            split = None if columns.split is None else record.get(columns.split, file.split)
            if columns.split is not None and split is None:
                raise InvalidInputError(f"{place} has no value in column {columns.split!r}.")
            yield _conversation_row(source, place, form, columns, record, split)
        return
    text_type = table.schema[columns.text]
    if text_type not in _TEXT_TYPES:
        raise InvalidInputError(
            f"Column {columns.text!r} of {file.source} holds {text_type}, not text."
        )
    for row, values in enumerate(table.select(pl.col(table.columns).cast(pl.String)).iter_rows()):
        record = dict(zip(table.columns, values, strict=True))
        for name, value in record.items():
            if value is None:
                raise InvalidInputError(
                    f"Row {row} of {file.source} has no value in column {name!r}. "
                    "Remove or fill such rows."
                )
        split = None if columns.split is None else record.get(columns.split, file.split)
        yield Row(f"{file.source}#{row}", record[columns.text], split)


def _table(file: InputFile, data: IO[bytes], columns: Columns) -> pl.DataFrame:
    """The columns of these names; that of a saved split only if it is stored."""
    if file.format.suffix in PARQUET:
        lazy = pl.scan_parquet(data, glob=False)
        return lazy.select(_stored(file, columns, lazy.collect_schema().names())).collect()
    start = data.read(6)
    data.seek(0)
    if start.startswith(b"FEA1"):
        raise InvalidInputError(
            f"{file.source} is of version 1 of Feather. Write it again as Parquet or Arrow."
        )
    # `datasets` writes streams, most others files; both go by the same suffix.
    if start == b"ARROW1":
        lazy = pl.scan_ipc(data, glob=False)
        return lazy.select(_stored(file, columns, lazy.collect_schema().names())).collect()
    data.seek(max(0, data.seek(0, io.SEEK_END) - len(_END_OF_STREAM)))
    if data.read() != _END_OF_STREAM:
        raise InvalidInputError(
            f"{file.source} is an Arrow stream without its end: it was cut off, or its writer did "
            "not finish. Write or copy it again."
        )
    data.seek(0)
    found = pl.read_ipc_stream(data, n_rows=0).columns
    data.seek(0)
    return pl.read_ipc_stream(data, columns=_stored(file, columns, found))


def _stored(file: InputFile, columns: Columns, found: Sequence[str]) -> list[str]:
    names = columns.names(found)
    _check_columns(file, names, found)
    return [name for name in names if name in found]


def _check_columns(file: InputFile, names: Sequence[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found and not (name == SPLIT_COLUMN and file.split is not None):
            raise InvalidInputError(
                f"{file.source} has no column {name!r}; its columns are "
                f"{', '.join(found) or 'none'}. Name another one as text or split column, or leave "
                "the file out: give a pattern instead of a folder. Conversations are read from "
                "the columns messages, conversations, chosen, prompt and completion, or "
                "instruction and output."
            )


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
