"""`Corpus`: the documents of a store's corpus, read and checked when they are needed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.corpus.manifest import (
    LICENSE_FILE,
    CorpusLicense,
    CorpusManifest,
)
from fusestore.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.foreign_table import check_foreign_table, collected
from fusestore.store.inventory import no_such
from fusestore.store.layout import Store
from fusestore.store.licenses import License
from fusestore.store.receipts import Receipt, receipt_path
from fusestore.tokenizers.conversation import END_OF_TURN, Conversation
from fusestore.tokenizers.supervision import Supervision

DOCUMENTS_SCHEMA = pl.Schema(
    {
        "document": pl.Int64(),
        "source": pl.String(),
        "segment": pl.Int32(),
        "split": pl.String(),
        "text": pl.String(),
        "byte_length": pl.Int64(),
        "digest": pl.String(),
        "conversation": pl.String(),
        "turns": pl.List(
            pl.Struct(
                {
                    "role": pl.String(),
                    "start": pl.Int32(),
                    "stop": pl.Int32(),
                    "trained_on": pl.Boolean(),
                }
            )
        ),
    }
)
"""One row a document; `digest` is the SHA-256 of the text's UTF-8, `segment` counts from 0.

`conversation` (JSON) and `turns` (bytes of the text) are null where the document is a text.
"""

TABLE_FILE = "documents.parquet"
RECEIPT_FILE = receipt_path("documents")


@dataclass(frozen=True)
class Corpus:
    """A complete corpus of a store.

    Attributes:
        name: its name in the store.
        location: its folder.
        manifest: its manifest.
    """

    name: str
    location: Location
    manifest: CorpusManifest

    def __repr__(self) -> str:
        size = f"{self.manifest.num_documents:,} documents, {self.manifest.num_bytes:,} bytes"
        return (
            f"Corpus({self.name!r} in {self.location.parent.parent}: {size}, "
            f"splits {', '.join(self.manifest.splits)})"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import artifact_html

        return artifact_html(Store(self.location.parent.parent), "corpus", self.name)

    @property
    def digest(self) -> str:
        """Identifies the corpus: the digest of its manifest."""
        return self.manifest.digest

    @property
    def license(self) -> License | None:
        """What was stated of the texts; None if nothing was."""
        stated = CorpusLicense.load_if_sound(self.location / LICENSE_FILE)
        return stated.license if stated and stated.corpus_digest == self.digest else None

    def describe(self, document: int) -> str:
        """A document by its source and segment, for messages."""
        source, segment = self._table.select("source", "segment").row(document)
        return f"{source}, segment {segment}"

    def table(self) -> pl.DataFrame:
        """All documents in order; see `DOCUMENTS_SCHEMA`.

        Raises:
            CorruptionError: the documents are missing or do not match the manifest.
        """
        return self._table

    def texts(self, split: str | None = None) -> list[str]:
        """Texts of a split's documents, or of all of them."""
        if split is None:
            return self._table["text"].to_list()
        return self._table["text"].gather(self.split_documents(split)).to_list()

    def scan(self) -> pl.LazyFrame:
        """The documents, checked and not loaded; see `DOCUMENTS_SCHEMA`.

        Raises:
            CorruptionError: they are missing or damaged.
        """
        return pl.scan_parquet(self._checked_file, glob=False)

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """What a query of `scan` gives.

        Raises:
            CorruptionError: a page of the file cannot be read.
        """
        return collected(query, str(self.location / TABLE_FILE), self._again)

    @property
    def _again(self) -> str:
        return f"Build corpus {self.name!r} again from the same inputs to replace it."

    def split_documents(self, split: str) -> npt.NDArray[np.int64]:
        """int64, ascending: the documents of a split. Texts are checked, but not loaded.

        Raises:
            InvalidInputError: the corpus has no such split.
            CorruptionError: the documents are missing or damaged.
        """
        if split not in self.manifest.splits:
            raise InvalidInputError(
                f"Corpus {self.name!r} has no split {split!r}; it has "
                f"{', '.join(self.manifest.splits)}. A rule such as held_out_fraction puts "
                "documents into a split; a small share of few documents may be none."
            )
        return np.flatnonzero((self._splits == split).to_numpy()).astype(np.int64)

    def sources(self) -> list[str]:
        """The source of every document, in order. Texts are not loaded."""
        return self.collect(self.scan().select("source"))["source"].to_list()

    def text_batches(self, documents: int = 4_096) -> Iterator[list[str]]:
        """All texts in order, in batches of documents: memory does not grow with the corpus.

        Raises:
            CorruptionError: the documents are missing or damaged.
        """
        texts = self.scan().select("text")
        for start in range(0, self.manifest.num_documents, documents):
            yield self.collect(texts.slice(start, documents))["text"].to_list()

    def conversation_batches(self, documents: int = 4_096) -> Iterator[list[Conversation]]:
        """All conversations in order, in batches of documents.

        Raises:
            CorruptionError: the documents are missing or damaged.
        """
        column = self.scan().select("conversation")
        for start in range(0, self.manifest.num_documents, documents):
            batch = self.collect(column.slice(start, documents))["conversation"]
            try:
                yield [Conversation.from_json(data or "null") for data in batch]
            except InvalidInputError as error:
                raise self._damaged(f"holds what is {error}") from error

    @cached_property
    def _supervision(self) -> Supervision | None:
        if self.manifest.fingerprint.chat is None:
            return None
        scan = self.scan().select("document", "turns")
        turns = self.collect(scan.explode("turns").unnest("turns").filter("trained_on"))
        counts = np.bincount(turns["document"].to_numpy(), minlength=self.manifest.num_documents)
        return Supervision(
            turns["start"].to_numpy().astype(np.int32),
            turns["stop"].to_numpy().astype(np.int32) + np.int32(len(END_OF_TURN)),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        )

    @cached_property
    def _splits(self) -> pl.Series:
        """The column `split`, without loading the texts, which would take memory."""
        return self.collect(self.scan().select("split"))["split"]

    @property
    def _checked_file(self) -> Path | io.BytesIO:
        """`documents.parquet`, checked against its receipt; the bytes if the store is remote."""
        file = self.location / TABLE_FILE
        try:
            receipt = Receipt.load(self.location / RECEIPT_FILE)
            if file.is_local:
                with file.path.open("rb") as data:
                    digest = hashlib.file_digest(data, "sha256").hexdigest()
                checked: Path | io.BytesIO = file.path
            else:
                listed = receipt.files.get(TABLE_FILE)
                # One byte more, so that a longer file differs from its record.
                limit = 0 if listed is None else listed.num_bytes
                checked = io.BytesIO(file.read_prefix(limit + 1))
                digest = hashlib.sha256(checked.getbuffer()).hexdigest()
        except (FileNotFoundError, NotFoundError) as error:
            raise self._damaged(f"is missing or damaged ({error})") from error
        record = receipt.files.get(TABLE_FILE)
        if record is None or record.sha256 != digest:
            raise self._damaged("does not match its checksum")
        self._check_headers(checked)
        return checked

    def _check_headers(self, file: Path | io.BytesIO) -> None:
        num_rows, name = self.manifest.num_documents, str(self.location / TABLE_FILE)
        check_foreign_table(file, name, DOCUMENTS_SCHEMA, num_rows, self._again)

    @cached_property
    def _table(self) -> pl.DataFrame:
        try:
            file = io.BytesIO((self.location / TABLE_FILE).read_bytes())
            self._check_headers(file)
            table = pl.read_parquet(file)
        except (NotFoundError, pl.exceptions.PolarsError) as error:
            raise self._damaged(f"is missing or damaged ({error})") from error
        except pl.exceptions.PanicException as error:
            raise self._damaged("cannot be read") from error
        if (
            table.schema != DOCUMENTS_SCHEMA
            or documents_digest(table) != self.manifest.documents_digest
        ):
            raise self._damaged("does not hold the documents its manifest names")
        return table

    def _damaged(self, problem: str) -> CorruptionError:
        return CorruptionError(f"{self.location / TABLE_FILE} {problem}. {self._again}")


def supervision_of(corpus: Corpus) -> Supervision | None:
    """Which bytes of each conversation are trained on, read once; None for a corpus of texts.

    Raises:
        CorruptionError: the documents are missing or damaged.
    """
    return corpus._supervision


def open_corpus(
    store: str | os.PathLike[str] | Location | Store,
    name: str,
    storage_options: Mapping[str, object] | None = None,
) -> Corpus:
    """Open a corpus of a store; only its manifest is read.

    Raises:
        NotFoundError: no such corpus, or it is not complete.
    """
    opened = Store.open(store, storage_options)
    location = opened.corpus(name)
    try:
        manifest = CorpusManifest.load(location / MANIFEST_FILE)
    except NotFoundError as error:
        if (location / FINGERPRINT_FILE).exists():
            raise NotFoundError(
                f"Corpus {name!r} in {opened.location} is not complete. Run the `fusestore corpus` "
                "command that began it again; it continues."
            ) from error
        raise no_such(opened, "corpus", name) from error
    return Corpus(name, location, manifest)


def documents_digest(table: pl.DataFrame) -> str:
    """SHA-256 of what the documents of a table say."""
    columns = ["source", "segment", "split", "text"]
    if table["conversation"].null_count() == 0:
        columns.append("conversation")
    return rows_digest(table.select(columns).iter_rows())


def rows_digest(rows: Iterator[tuple[Any, ...]]) -> str:
    """SHA-256 of all values of all rows, each as text after its length in bytes."""
    state = hashlib.sha256()
    for row in rows:
        for value in row:
            data = str(value).encode()
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
    return state.hexdigest()
