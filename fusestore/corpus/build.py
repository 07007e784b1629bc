"""Builds a corpus in a store.

A corpus is complete exactly when its manifest exists, which is written last and once. Building the
same corpus again changes nothing; another corpus never overwrites it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from fusestore.corpus.conversation_forms import InputForm
from fusestore.corpus.corpus import (
    DOCUMENTS_SCHEMA,
    RECEIPT_FILE,
    TABLE_FILE,
    Corpus,
    documents_digest,
    open_corpus,
    rows_digest,
)
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
from fusestore.store.receipts import FileRecord, Receipt
from fusestore.tokenizers.tokenizer import Tokenizer

DEFAULT_CHAT = ChatSettings(train_on="assistant")


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
        input_digest=rows_digest(
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
        documents_digest=documents_digest(table),
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
    Receipt.publish(location, "documents", rows, manifest.fingerprint.digest, {TABLE_FILE: data})


def _is_whole(corpus: Corpus) -> bool:
    """Whether fingerprint and documents are undamaged, byte for byte."""
    fingerprint = CorpusFingerprint.load_if_sound(corpus.location / FINGERPRINT_FILE)
    if fingerprint != corpus.manifest.fingerprint:
        (corpus.location / FINGERPRINT_FILE).delete()
        return False
    try:
        receipt = Receipt.load(corpus.location / RECEIPT_FILE)
        data = (corpus.location / TABLE_FILE).read_bytes()
    except (NotFoundError, CorruptionError, InvalidInputError):
        return False
    return receipt.files == {TABLE_FILE: FileRecord.of(data)}
