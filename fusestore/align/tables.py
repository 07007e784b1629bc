"""Token alignments in a store: Parquet parts, whole documents each, and a manifest.

    alignments/<name>/fingerprint.json   what is aligned, and how; written first
                      part-00000.parquet document int32, target_pos int32, source_pos int32 or null,
                                         kind enum (none, span, mined); one row per target token
                      manifest.json      counts and the parts' checksums; written last

A part is published whole and depends on nothing but the inputs, so an interrupted run goes on where
it stopped, and the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from fusestore.align.kinds import ALIGNMENT_KINDS, AlignmentMethod
from fusestore.align.tokens import align_table, check_tables
from fusestore.align.vocabulary import VocabularyMap
from fusestore.corpus.tokens import TokenTable
from fusestore.corpus.vocabulary import Vocabulary
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    NotFoundError,
)
from fusestore.storage.manifest import Frozen, Manifest
from fusestore.storage.publish import publish, publish_new, remove_abandoned
from fusestore.storage.shards import FileRecord
from fusestore.storage.urls import Location

TOKENS_PER_PART = 2**20
"""Target tokens after which a part ends, at the next document: about 20 MB while it is made."""

ALIGNMENT_SCHEMA = pl.Schema(
    {
        "document": pl.Int32(),
        "target_pos": pl.Int32(),
        "source_pos": pl.Int32(),
        "kind": pl.Enum(ALIGNMENT_KINDS),
    }
)


class AlignmentFingerprint(Manifest):
    """Everything that decides an alignment's content; all digests are SHA-256, hexadecimal.

    Attributes:
        method: hybrid, span, mined or exact.
        source_cache_digest: digest of the source's distribution cache.
        corpus_digest: digest of the corpus that both sides tokenize.
        source_tokenizer_digest: the source's tokenizer.
        target_tokenizer_digest: the target's tokenizer.
        source_tokens_digest: the source's ids and offsets.
        target_tokens_digest: the target's ids and offsets.
        vocabulary_map_digest: digest of the map that pairs had to agree with, if there was one.
        num_documents: documents on either side.
        num_source_tokens: tokens of the source.
        num_target_tokens: rows of the alignment.
        tokens_per_part: where parts end.
    """

    method: AlignmentMethod
    source_cache_digest: str
    corpus_digest: str
    source_tokenizer_digest: str
    target_tokenizer_digest: str
    source_tokens_digest: str
    target_tokens_digest: str
    vocabulary_map_digest: str | None
    num_documents: int
    num_source_tokens: int
    num_target_tokens: int
    tokens_per_part: int


class AlignmentPart(Frozen):
    """One Parquet file: documents `[start, stop)`, their rows, and what the file holds."""

    name: str
    start: int
    stop: int
    num_tokens: int
    record: FileRecord


class AlignmentManifest(Manifest):
    """A complete alignment.

    Attributes:
        fingerprint: what was aligned, and how.
        counts: target tokens by kind.
        parts: in order of documents; together they cover all of them.
    """

    fingerprint: AlignmentFingerprint
    counts: dict[str, int]
    parts: tuple[AlignmentPart, ...]


class Alignment:
    """A complete alignment, read part by part; the part read last is kept.

    Attributes:
        location: its folder.
        manifest: what it is.
    """

    def __init__(self, location: Location, manifest: AlignmentManifest) -> None:
        self.location = location
        self.manifest = manifest
        self._loaded: tuple[str, pl.DataFrame] | None = None

    @property
    def coverage(self) -> dict[str, float]:
        """Share of target tokens by kind; all zero when there are no tokens."""
        total = max(self.manifest.fingerprint.num_target_tokens, 1)
        return {kind: count / total for kind, count in self.manifest.counts.items()}

    def for_documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """The alignment of the target tokens of documents `[start, stop)`.

        Returns:
            source position within its document int32 [n], −1 for none, and kind uint8 [n], an
            index into `ALIGNMENT_KINDS`.

        Raises:
            IndexError: not a range of the corpus's documents.
            CorruptionError: a part is missing or not what was written.
        """
        num_documents = self.manifest.fingerprint.num_documents
        if not 0 <= start <= stop <= num_documents:
            raise IndexError(
                f"Documents [{start}, {stop}) of {self.location}, which has {num_documents:,}."
            )
        positions = [np.empty(0, np.int32)]
        kinds = [np.empty(0, np.uint8)]
        for part in self.manifest.parts:
            if part.stop <= start or part.start >= stop:
                continue
            table = self._read(part)
            first, last = np.searchsorted(table["document"].to_numpy(), [start, stop])
            rows = table[first:last]
            positions.append(rows["source_pos"].fill_null(-1).to_numpy())
            kinds.append(rows["kind"].to_physical().cast(pl.UInt8).to_numpy())
        return np.concatenate(positions), np.concatenate(kinds)

    def _read(self, part: AlignmentPart) -> pl.DataFrame:
        if self._loaded is None or self._loaded[0] != part.name:
            location = self.location / part.name
            try:
                data = location.read_bytes()
            except NotFoundError as error:
                raise CorruptionError(
                    f"{location} is missing. Run `fusestore verify --repair`."
                ) from error
            if FileRecord.of(data) != part.record:
                raise CorruptionError(
                    f"{location} does not match its checksum ({len(data):,} bytes, "
                    f"{part.record.num_bytes:,} were written). Run `fusestore verify --repair`."
                )
            self._loaded = part.name, pl.read_parquet(io.BytesIO(data))
        return self._loaded[1]


def write_alignment(
    location: Location,
    source: TokenTable,
    target: TokenTable,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    *,
    source_cache_digest: str,
    source_corpus_digest: str,
    target_corpus_digest: str,
    method: AlignmentMethod = "hybrid",
    vocabulary_map: VocabularyMap | None = None,
    tokens_per_part: int = TOKENS_PER_PART,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Align and store, part by part; what an earlier run of the same finished is kept.

    Args:
        location: the alignment's folder.
        source: the cache's tokens.
        target: the target's tokens of the same documents.
        source_vocab: what the source ids stand for.
        target_vocab: what the target ids stand for.
        source_cache_digest: identifies the cache the rows will come from.
        source_corpus_digest: the corpus that the cache was made of.
        target_corpus_digest: the corpus that the target tokens were made of.
        method: see `align_table`.
        vocabulary_map: see `align_table`.
        tokens_per_part: target tokens after which a part ends.
        progress: called with (target tokens done, in all), first with what was there already.

    Raises:
        IncompatibleError: the corpora differ, or ids do not belong to their vocabulary.
        FingerprintMismatchError: an alignment of this name has other inputs or settings.
        InvalidInputError: unknown method, or end offsets that decrease.
        In each case the store is left as it was.
    """
    if source_corpus_digest != target_corpus_digest:
        raise IncompatibleError(
            f"The source cache is of corpus {source_corpus_digest[:16]} and the target tokens of "
            f"corpus {target_corpus_digest[:16]}; only two tokenizations of one corpus can be "
            "aligned. Capture the source over the target's corpus."
        )
    check_tables(source, target, source_vocab, target_vocab, method, vocabulary_map)
    fingerprint = AlignmentFingerprint(
        method=method,
        source_cache_digest=source_cache_digest,
        corpus_digest=source_corpus_digest,
        source_tokenizer_digest=source_vocab.tokenizer_digest,
        target_tokenizer_digest=target_vocab.tokenizer_digest,
        source_tokens_digest=_tokens_digest(source),
        target_tokens_digest=_tokens_digest(target),
        vocabulary_map_digest=None if vocabulary_map is None else vocabulary_map.digest,
        num_documents=target.num_documents,
        num_source_tokens=source.num_tokens,
        num_target_tokens=target.num_tokens,
        tokens_per_part=tokens_per_part,
    )
    _claim(location, fingerprint)
    if (location / "manifest.json").exists():
        return open_alignment(location)
    remove_abandoned(location)
    parts = []
    counts = np.zeros(len(ALIGNMENT_KINDS), np.int64)
    for index, (start, stop) in enumerate(_part_bounds(target, tokens_per_part)):
        name = f"part-{index:05d}.parquet"
        num_tokens = int(target.document_offsets[stop] - target.document_offsets[start])
        data = _finished_part(location / name, num_tokens)
        if data is None:
            position, kind = align_table(
                _documents(source, start, stop),
                _documents(target, start, stop),
                source_vocab,
                target_vocab,
                method,
                vocabulary_map,
            )
            data = _encode(
                start, np.diff(target.document_offsets[start : stop + 1]), position, kind
            )
            publish(location / name, data)
        kinds = pl.read_parquet(io.BytesIO(data), columns=["kind"])["kind"].to_physical()
        counts += np.bincount(kinds.to_numpy(), minlength=len(counts))
        parts.append(
            AlignmentPart(
                name=name,
                start=start,
                stop=stop,
                num_tokens=num_tokens,
                record=FileRecord.of(data),
            )
        )
        if progress is not None:
            progress(int(target.document_offsets[stop]), target.num_tokens)
    manifest = AlignmentManifest(
        fingerprint=fingerprint,
        counts=dict(zip(ALIGNMENT_KINDS, counts.tolist(), strict=True)),
        parts=tuple(parts),
    )
    manifest.save(location / "manifest.json")
    return Alignment(location, manifest)


def open_alignment(location: Location) -> Alignment:
    """Open a complete alignment.

    Raises:
        NotFoundError: there is none here, or it was not finished.
    """
    if not (location / "manifest.json").exists():
        found = [name for name in location.list() if name.startswith("part-")]
        state = (
            f"{location} is an alignment that was not finished ({len(found)} parts are there)"
            if (location / "fingerprint.json").exists()
            else f"There is no alignment at {location}"
        )
        raise NotFoundError(f"{state}. Run `fusestore align`, which does only what is missing.")
    return Alignment(location, AlignmentManifest.load(location / "manifest.json"))


def _claim(location: Location, fingerprint: AlignmentFingerprint) -> None:
    """Write the fingerprint, or see that the one there is the same."""
    path = location / "fingerprint.json"
    if path.exists():
        found = AlignmentFingerprint.load(path).model_dump()
        asked = fingerprint.model_dump()
        differing = [
            f"{name} is {found[name]!r} there and {asked[name]!r} here"
            for name in asked
            if found[name] != asked[name]
        ]
        if differing:
            raise FingerprintMismatchError(
                f"Alignment {location} was made with other settings: {'; '.join(differing)}. "
                "Use another name, or delete it to make it anew."
            )
    else:
        publish_new(path, fingerprint.to_bytes())


def _part_bounds(target: TokenTable, tokens_per_part: int) -> list[tuple[int, int]]:
    """Documents [start, stop) of every part: a new one begins with every `tokens_per_part`."""
    if target.num_documents == 0:
        return []
    group = target.document_offsets[:-1] // tokens_per_part
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], target.num_documents], strict=True))


def _documents(table: TokenTable, start: int, stop: int) -> TokenTable:
    offsets = table.document_offsets[start : stop + 1]
    rows = slice(offsets[0], offsets[-1])
    return TokenTable(table.token_ids[rows], table.end_offsets[rows], offsets - offsets[0])


def _encode(
    first_document: int,
    lengths: npt.NDArray[np.int64],
    position: npt.NDArray[np.int32],
    kind: npt.NDArray[np.uint8],
) -> bytes:
    documents = np.arange(first_document, first_document + len(lengths), dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    table = pl.DataFrame(
        {
            "document": np.repeat(documents, lengths),
            "target_pos": (np.arange(len(kind)) - np.repeat(starts, lengths)).astype(np.int32),
            "source_pos": pl.Series(position, dtype=pl.Int32).replace(-1, None),
            "kind": pl.Series(ALIGNMENT_KINDS, dtype=ALIGNMENT_SCHEMA["kind"]).gather(kind),
        },
        schema=ALIGNMENT_SCHEMA,
    )
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=True, row_group_size=2**18)
    return buffer.getvalue()


def _finished_part(location: Location, num_tokens: int) -> bytes | None:
    """The bytes of a part that an interrupted run left whole, if there is one."""
    if not location.exists():
        return None
    data = location.read_bytes()
    try:
        table = pl.read_parquet(io.BytesIO(data))
    except PolarsError:
        return None
    return data if table.schema == ALIGNMENT_SCHEMA and len(table) == num_tokens else None


def _tokens_digest(table: TokenTable) -> str:
    state = hashlib.sha256()
    for values, dtype in (
        (table.document_offsets, "<i8"),
        (table.token_ids, "<i4"),
        (table.end_offsets, "<i4"),
    ):
        state.update(np.ascontiguousarray(values, dtype=dtype).data)
    return state.hexdigest()
