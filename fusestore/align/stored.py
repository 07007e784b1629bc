"""A stored alignment, read as flat arrays.

    alignments/<name>/fingerprint.json     inputs and settings; written first
                      zarr.json            a Zarr v3 group of the arrays
                      source_pos/ kind/    one row per target token, see `alignment_arrays`
                      document_offsets/    first row of each document
                      receipts/            layout.json, then 000000.json …, one per shard
                      unmatched.parquet    see `report/unmatched.py`
                      manifest.json        written last

The arrays are uncompressed, one chunk per file, so that `data.mapped` can map them. This module
imports none of Polars, numba and zarr, because workers of a training run read alignments too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import ALIGNMENT_KINDS
from fusestore.align.manifest import AlignmentFingerprint, AlignmentManifest
from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.layout import Store, near_names
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.token_table import offsets_problem

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    from fusestore.cache.table import PositionTable


class AlignmentRows:
    """The rows of an alignment; of an unfinished alignment, only written rows can be read.

    Every read checks the checksums of the files it touches. Can be pickled.
    """

    def __init__(
        self,
        location: Location,
        fingerprint: AlignmentFingerprint,
        files: Mapping[str, FileRecord],
    ) -> None:
        self.location = location
        self._num_documents = fingerprint.num_documents
        self._source_pos, self._kind, self._document_offsets = (
            ArrayReader(location, spec, files) for spec in fingerprint.arrays
        )

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is rows `[value[i], value[i + 1])`, in target tokens.

        Raises:
            CorruptionError: they do not cover the rows from first to last.
        """
        offsets = self._document_offsets.read(0, self._num_documents + 1)
        problem = offsets_problem(offsets, self._source_pos.spec.shape[0])
        if problem is not None:
            raise CorruptionError(
                f"{self.location}/document_offsets is damaged: they {problem}. "
                "Run `fusestore verify`."
            )
        return offsets

    def for_documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """The alignment of the target tokens of documents `[start, stop)`.

        Returns:
            source position within its document int32 [n], −1 for none, and kind uint8 [n], an
            index into `ALIGNMENT_KINDS`.

        Raises:
            IndexError: not a range of the corpus's documents.
            CorruptionError: a file is missing or damaged.
        """
        if not 0 <= start <= stop <= self._num_documents:
            raise IndexError(
                f"Documents [{start}, {stop}) of {self.location}, which has "
                f"{self._num_documents:,}."
            )
        first, last = int(self.document_offsets[start]), int(self.document_offsets[stop])
        position, kind = self.rows(first, last)
        if kind.size and (kind.max() >= len(ALIGNMENT_KINDS) or position.min() < -1):
            raise CorruptionError(
                f"{self.location} holds kinds up to {kind.max()} and source rows from "
                f"{position.min()}, which are none. Run `fusestore verify` on its store."
            )
        return position, kind

    def rows(self, first: int, last: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """The rows `[first, last)`, as `for_documents`; errors too."""
        return self._source_pos.read(first, last), self._kind.read(first, last)


class Alignment(AlignmentRows):
    """A complete alignment.

    Attributes:
        location: its folder.
        manifest: its manifest.
    """

    def __init__(self, location: Location, manifest: AlignmentManifest) -> None:
        super().__init__(location, manifest.fingerprint, manifest.files)
        self.manifest = manifest

    def __repr__(self) -> str:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in self.coverage.items())
        fingerprint = self.manifest.fingerprint
        return (
            f"Alignment({self.location.name!r} in {self.location.parent.parent}: method "
            f"{fingerprint.method}, {fingerprint.num_target_tokens:,} target tokens, {shares})"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import artifact_html

        return artifact_html(Store(self.location.parent.parent), "alignment", self.location.name)

    def to_polars(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """The alignment as a table, one line a target token, of about 72 bytes.

        Args:
            documents: index of one document, or consecutive ones, as in `range(0, 10)`; None for
                all.
            decode: add the ids and the text of both tokens. Bytes that are no characters are
                shown in hexadecimal.
            limit: most lines. Without it, a table of more than 4 GiB is refused.

        Returns:
            document, target_pos, source_pos: int32, source_pos null for none; kind: span, inside,
            mined or none. With `decode` also target_id, source_id: int32; target_token,
            source_token: string.

        Raises:
            InvalidInputError: no such document, or too large a table.
            NotFoundError: `decode`, and the store no longer holds the cache or a vocabulary.
            CorruptionError: stored bytes are damaged.
        """
        return self._table(documents, limit, decode=decode).to_polars()

    def to_arrow(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pa.Table:
        """The table of `to_polars` as Arrow's, of the extra `notebook`; arguments as there.

        Raises:
            MissingDependencyError: pyarrow is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(documents, limit, decode=decode).to_arrow()

    def to_xarray(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> xr.Dataset:
        """The columns of `to_polars` over `position`; −1 and an empty text stand for none.

        Raises:
            MissingDependencyError: xarray, of the extra `notebook`, is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(documents, limit, decode=decode).to_xarray()

    def _table(
        self, documents: int | range | None, limit: int | None, *, decode: bool
    ) -> PositionTable:
        from fusestore.align.report.aligned_table import aligned_table, tokens_of_both_sides
        from fusestore.cache.table import positions_of_documents, table_bytes

        fingerprint, name = self.manifest.fingerprint, self.location.name
        offsets = self.document_offsets
        start, stop = positions_of_documents(
            offsets, documents, limit, table_bytes(0, decode=decode), f"alignment {name!r}"
        )
        tokens = None
        if decode:
            tokens = tokens_of_both_sides(Store(self.location.parent.parent), name, fingerprint)
        return aligned_table(
            (self._source_pos.read(start, stop), self._kind.read(start, stop)),
            start,
            offsets,
            tokens,
            {
                "kind": "alignment",
                "name": name,
                "method": fingerprint.method,
                "source_tokenizer": fingerprint.source_tokenizer_digest,
                "target_tokenizer": fingerprint.target_tokenizer_digest,
            },
        )

    @property
    def coverage(self) -> dict[str, float]:
        """Share of target tokens by alignment kind; all zero without tokens."""
        return self.manifest.coverage


def open_alignment(location: Location) -> Alignment:
    """Open a complete alignment.

    Raises:
        NotFoundError: the folder holds no alignment, or an unfinished alignment.
    """
    try:
        return Alignment(location, AlignmentManifest.load(location / "manifest.json"))
    except NotFoundError as error:
        state = f"There is no alignment at {location}.{near_names(location)}"
        if (location / "fingerprint.json").exists():
            shards = [name for name in (location / "receipts").list() if name[0].isdigit()]
            state = f"The alignment at {location} is not finished ({len(shards)} shards are)."
        raise NotFoundError(
            f"{state} Run `fusestore align`, which does only what is missing."
        ) from error
