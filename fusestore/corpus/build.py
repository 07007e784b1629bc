"""Builds a corpus in a store, and opens it again.

A corpus is complete exactly when its manifest exists, which is written last and once. Building the
same corpus again changes nothing; another corpus never overwrites it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.corpus.conversation_forms import InputForm
from fusestore.corpus.cut_documents import cut_documents
from fusestore.corpus.ingest import Input, read_documents
from fusestore.corpus.manifest import (
    ChatSettings,
    CorpusFingerprint,
    CorpusManifest,
    Segmentation,
    SplitSize,
)
from fusestore.corpus.splits import HeldOut, limit_documents
from fusestore.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.location import Location
from fusestore.storage.publish import remove_abandoned
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.fingerprints import check_same_fingerprint, write_fingerprint
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord, Receipt, receipt_path
from fusestore.tokenizers.conversation import END_OF_TURN, Conversation
from fusestore.tokenizers.supervision import Supervision
from fusestore.tokenizers.tokenizer import Tokenizer

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

DEFAULT_CHAT = ChatSettings(train_on="assistant")

_TABLE = "documents.parquet"
_RECEIPT = receipt_path("documents")


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

    @property
    def digest(self) -> str:
        """Identifies the corpus: the digest of its manifest."""
        return self.manifest.digest

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
        scan = pl.scan_parquet(self._checked_file, glob=False)
        return scan.select("source").collect()["source"].to_list()

    def text_batches(self, documents: int = 4_096) -> Iterator[list[str]]:
        """All texts in order, in batches of documents: memory does not grow with the corpus.

        Raises:
            CorruptionError: the documents are missing or damaged.
        """
        texts = pl.scan_parquet(self._checked_file, glob=False).select("text")
        for start in range(0, self.manifest.num_documents, documents):
            yield texts.slice(start, documents).collect()["text"].to_list()

    def conversation_batches(self, documents: int = 4_096) -> Iterator[list[Conversation]]:
        """All conversations in order, in batches of documents.

        Raises:
            CorruptionError: the documents are missing or damaged.
        """
        column = pl.scan_parquet(self._checked_file, glob=False).select("conversation")
        for start in range(0, self.manifest.num_documents, documents):
            batch = column.slice(start, documents).collect()["conversation"]
            try:
                yield [Conversation.from_json(data or "null") for data in batch]
            except InvalidInputError as error:
                raise self._damaged(f"holds what is {error}") from error

    @cached_property
    def _supervision(self) -> Supervision | None:
        if self.manifest.fingerprint.chat is None:
            return None
        scan = pl.scan_parquet(self._checked_file, glob=False).select("document", "turns")
        turns = scan.explode("turns").unnest("turns").filter("trained_on").collect()
        counts = np.bincount(turns["document"].to_numpy(), minlength=self.manifest.num_documents)
        return Supervision(
            turns["start"].to_numpy().astype(np.int32),
            turns["stop"].to_numpy().astype(np.int32) + np.int32(len(END_OF_TURN)),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        )

    @cached_property
    def _splits(self) -> pl.Series:
        """The column `split`, without loading the texts, which would take memory."""
        return pl.scan_parquet(self._checked_file, glob=False).select("split").collect()["split"]

    @property
    def _checked_file(self) -> Path | io.BytesIO:
        """`documents.parquet`, checked against its receipt; the bytes if the store is remote."""
        file = self.location / _TABLE
        try:
            receipt = Receipt.load(self.location / _RECEIPT)
            if file.is_local:
                with file.path.open("rb") as data:
                    digest = hashlib.file_digest(data, "sha256").hexdigest()
                checked: Path | io.BytesIO = file.path
            else:
                checked = io.BytesIO(file.read_bytes())
                digest = hashlib.sha256(checked.getbuffer()).hexdigest()
        except (FileNotFoundError, NotFoundError) as error:
            raise self._damaged(f"is missing or damaged ({error})") from error
        if receipt.files[_TABLE].sha256 != digest:
            raise self._damaged("does not match its checksum")
        return checked

    @cached_property
    def _table(self) -> pl.DataFrame:
        try:
            table = pl.read_parquet(io.BytesIO((self.location / _TABLE).read_bytes()))
        except (NotFoundError, pl.exceptions.PolarsError) as error:
            raise self._damaged(f"is missing or damaged ({error})") from error
        if (
            table.schema != DOCUMENTS_SCHEMA
            or _documents_digest(table) != self.manifest.documents_digest
        ):
            raise self._damaged("does not hold the documents its manifest names")
        return table

    def _damaged(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.location / _TABLE} {problem}. Build corpus {self.name!r} again from the same "
            "inputs to replace it."
        )


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
        names = [
            other
            for other in opened.names("corpora")
            if (opened.corpus(other) / MANIFEST_FILE).exists()
        ]
        holds = f"It has {', '.join(names)}." if names else "It has none yet."
        raise NotFoundError(
            f"Store {opened.location} has no corpus {name!r}. {holds} "
            "Make one with `fusestore corpus`."
        ) from error
    return Corpus(name, location, manifest)


def write_corpus(
    store: str | os.PathLike[str] | Location | Store,
    name: str,
    inputs: Input | Sequence[Input],
    *,
    text_column: str = "text",
    split_column: str | None = None,
    form: InputForm = "auto",
    keep_white_space: bool = False,
    chat: ChatSettings = DEFAULT_CHAT,
    held_out: Sequence[HeldOut] = (),
    max_documents: int | Mapping[str, int] | None = None,
    max_bytes: int | Mapping[str, int] | None = None,
    sample_seed: int | None = None,
    tokenizers: Sequence[Tokenizer] = (),
    max_length: int | None = None,
    bos_allowance: int = 1,
    progress: Progress = ignore_progress,
    report: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Read the inputs, cut long documents, and write the corpus to the store.

    Source documents with only white space are left out and counted. All other text is kept: the
    segments of a source document, joined, are its text.

    Args:
        store: the store.
        name: the corpus's name.
        inputs: files, patterns, folders or URLs; see `read_documents`.
        text_column: column of the text, in tables.
        split_column: column of the split, in tables.
        form: of the documents in tables; see `read_documents`.
        keep_white_space: of conversations; see `Conversation`.
        chat: how conversations are read; no effect on texts.
        held_out: rules that send source documents to other splits than `train`.
        max_documents: source documents to keep, in total or by split; see `limit_documents`.
        max_bytes: bytes of source text to keep, in total or by split.
        sample_seed: keep documents drawn by this seed instead of the first documents.
        tokenizers: of all models of the run.
        max_length: most tokens of a document in any of the tokenizers, BOS included; None leaves
            documents whole.
        bos_allowance: tokens of `max_length` kept free for BOS.
        progress: counts bytes of source text.
        report: receives a line on files that are not read.

    Returns:
        The corpus; an existing one if it was made from the same documents with the same settings.

    Raises:
        FingerprintMismatchError: another corpus has this name; it was not changed.
        InvalidInputError, NotFoundError: see `read_documents`; nothing was written.
    """
    if max_length is not None and not tokenizers:
        raise InvalidInputError(
            f"A maximum length of {max_length} tokens was given without a tokenizer to count them."
        )
    opened = Store.open(store)
    location = opened.corpus(name)
    documents = read_documents(
        inputs,
        text_column=text_column,
        split_column=split_column,
        form=form,
        keep_white_space=keep_white_space,
        held_out=held_out,
        report=report,
    )
    blank = documents["text"].str.strip_chars() == ""
    documents = limit_documents(
        documents.filter(~blank),
        max_documents=max_documents,
        max_bytes=max_bytes,
        sample_seed=sample_seed,
    )
    if documents.is_empty():
        raise InvalidInputError(
            f"Corpus {name!r} would be empty: {int(blank.sum())} of {len(blank)} source documents "
            "hold only white space, and the limits leave none of the others."
        )
    is_chat = documents["conversation"].null_count() == 0
    digests = () if max_length is None else sorted({t.digest for t in tokenizers})
    fingerprint = CorpusFingerprint(
        input_digest=_rows_digest(
            documents.select("source", "split", "text", *["conversation"] * is_chat).iter_rows()
        ),
        segmentation=Segmentation(
            max_length=max_length,
            bos_allowance=bos_allowance if max_length is not None else 0,
            tokenizer_digests=tuple(digests),
        ),
        chat=chat if is_chat else None,
    )
    if (location / MANIFEST_FILE).exists():
        existing = open_corpus(opened, name)
        check_same_fingerprint(
            existing.manifest.fingerprint, fingerprint, f"Corpus {name!r} ({location})"
        )
        if _is_whole(existing):
            return existing
    cut = cut_documents(
        documents,
        fingerprint,
        tokenizers,
        progress,
        report,
    )
    table = pl.DataFrame(cut.rows, schema=DOCUMENTS_SCHEMA, orient="row")
    manifest = CorpusManifest(
        fingerprint=fingerprint,
        documents_digest=_documents_digest(table),
        num_sources=len(documents),
        dropped_blank=int(blank.sum()),
        num_documents=len(table),
        num_bytes=int(table["byte_length"].sum()),
        forced_cuts=cut.forced_cuts,
        dropped_exchanges=cut.dropped_exchanges,
        splits={
            split: SplitSize(num_documents=count, num_bytes=size)
            for split, count, size in table.group_by("split")
            .agg(pl.len(), pl.col("byte_length").sum().alias("size"))
            .sort("split")
            .iter_rows()
        },
    )
    write_fingerprint(location, fingerprint, f"Corpus {name!r}")
    remove_abandoned(location)
    publish_documents(location, manifest, documents_bytes(table))
    manifest.save(location / MANIFEST_FILE)
    return Corpus(name, location, manifest)


def documents_bytes(table: pl.DataFrame) -> bytes:
    """The file `documents.parquet` of a table of documents."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", row_group_size=2**14)
    return buffer.getvalue()


def publish_documents(location: Location, manifest: CorpusManifest, data: bytes) -> None:
    """Write `documents.parquet` and then its receipt.

    The manifest does not cover the receipt, because its digest identifies the corpus in all
    encodings of the table.
    """
    rows = (0, manifest.num_documents)
    Receipt.publish(location, "documents", rows, manifest.fingerprint.digest, {_TABLE: data})


def _is_whole(corpus: Corpus) -> bool:
    """Whether fingerprint and documents are undamaged, byte for byte."""
    fingerprint = CorpusFingerprint.load_if_sound(corpus.location / FINGERPRINT_FILE)
    if fingerprint != corpus.manifest.fingerprint:
        (corpus.location / FINGERPRINT_FILE).delete()
        return False
    try:
        receipt = Receipt.load(corpus.location / _RECEIPT)
        data = (corpus.location / _TABLE).read_bytes()
    except (NotFoundError, CorruptionError, InvalidInputError):
        return False
    return receipt.files == {_TABLE: FileRecord.of(data)}


def _documents_digest(table: pl.DataFrame) -> str:
    columns = ["source", "segment", "split", "text"]
    if table["conversation"].null_count() == 0:
        columns.append("conversation")
    return _rows_digest(table.select(columns).iter_rows())


def _rows_digest(rows: Iterator[tuple[Any, ...]]) -> str:
    """SHA-256 of all values of all rows, each as text after its length in bytes."""
    state = hashlib.sha256()
    for row in rows:
        for value in row:
            data = str(value).encode()
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
    return state.hexdigest()
