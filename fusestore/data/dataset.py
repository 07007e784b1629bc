"""A fused dataset as a map-style torch dataset over packed windows, memory-mapped.

A dataset that is not complete is made on demand: reading a window makes its shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from fusestore.data.mapped import MAX_METADATA_BYTES, MappedArray, chunk_slices
from fusestore.data.order import permutation
from fusestore.data.shard_maker import ShardMaker
from fusestore.data.windows import SAMPLE_ARRAYS, WIDE_ARRAYS, Windows, empty_rows, sample_of
from fusestore.errors import CorruptionError, FormatVersionError, InvalidInputError, NotFoundError
from fusestore.fuse.choices import KIND_NAMES, Packing
from fusestore.fuse.window_rules import windows_problem
from fusestore.storage.file_lock import locked
from fusestore.storage.location import Location
from fusestore.storage.packages import cache_folder
from fusestore.storage.private_folder import check_private, private_folder
from fusestore.storage.publish import TEMPORARY_PREFIX, publish, remove_abandoned
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.copy import check_files_match, copy_missing
from fusestore.store.file_listing import file_records
from fusestore.store.held_digest import check_digest
from fusestore.store.layout import Store, near_names
from fusestore.store.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    digest_bytes,
    manifest_content,
)
from fusestore.store.receipts import receipt_path, shard_part

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    from fusestore.cache.table import PositionTable
    from fusestore.tokenizers.vocabulary import Vocabulary

_READ = (*SAMPLE_ARRAYS, "document")
_ARRAYS = (*_READ, "source")

_ROWS_PER_SCAN = 1 << 18

SECONDS_BETWEEN_LOOKS = 0.5
"""A file that is cut while it is mapped is noticed after at most this long, and then at the next
batch. Until then reading beyond its new end kills the process."""

_MANY_TOKENS = 2**24
"""Of fewer tokens a missing file is noticed when it is read."""

_MAX_TABLE_BYTES = 2**28
"""Of a table of windows: room for 33 million."""


class FusedDataset(Dataset[dict[str, Tensor]]):
    """Window i is target tokens `[i · window_length, (i + 1) · window_length)`, fewer at the end.

    With the recipe's packing `document` no window holds two documents: each document begins a
    window, and its last window may be shorter. With `whole`, windows begin and end with documents.

    Each sample: `input_ids` int32 [l], `next_ids` int32 [l] (−100: none), `fused_ids` int32
    [l, k], `fused_logprobs` float32 [l, k] (−inf: unused entry), `fused_tail` float32 [l],
    `fused_mask` bool [l] (whether the position is distilled), `document_end` bool [l] (whether a
    document ends with this token), `fused_sampled` bool [] (whether rows are samples), `window`
    int64 []. `fusestore.data.collate` converts them to the dtypes that losses need.

    Files are mapped lazily in each process, so the dataset can be pickled and used by any number
    of DataLoader workers, forked or spawned.

    Attributes:
        folder: the local folder.
        plan: recipe and inputs; see `fusestore.fuse.manifest.FusionPlan`.
        digest: SHA-256 of the plan, hexadecimal; the same for every copy of the dataset.
        window_length: tokens per window.
        vocab_size: tokens of the target's tokenizer.
        sampled: whether rows of any source are samples; see docs/losses.md.
        whole_documents: whether windows hold whole documents, as by packing `whole`.
        num_tokens: T.
        top_k: entries per fused row.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        make_shard: Callable[[int], object] | None = None,
        *,
        plan: dict[str, Any] | None = None,
    ) -> None:
        """Open a local fused dataset.

        Args:
            folder: its folder.
            make_shard: makes a shard, given its number; None: the dataset must be complete.
            plan: that of its manifest or fingerprint, if the caller has read and checked it.

        Raises:
            NotFoundError: the folder holds no complete fused dataset, or with `make_shard` no plan.
            CorruptionError: its arrays do not belong together.
            InvalidInputError: it has no tokens.
        """
        self.folder = Path(folder)
        location = Location.parse(self.folder).confined()
        self.plan = _read_plan(location, complete=make_shard is None) if plan is None else plan
        self.digest = plan_digest(self.plan)
        self.window_length = int(self.plan["recipe"]["window_length"])
        self.vocab_size = int(self.plan["vocab_size"])
        self.sampled = bool(self.plan["sampled"])
        self.whole_documents = self.plan["recipe"]["packing"] == "whole"
        if make_shard is None and self.plan["num_tokens"] > _MANY_TOKENS:
            self._check_files()
        self._make_shard = make_shard
        self._made_shards: set[int] = set()
        self._looked = 0.0
        self._arrays = {
            name: MappedArray(self.folder / name, len(KIND_NAMES) - 1 if name == "kind" else None)
            for name in _READ
        }
        self._check_arrays()
        self._starts = None
        if _has_window_table(self.plan):
            self._starts = MappedArray(self.folder / "window_starts")
            self._check_starts(self._starts)
        self.num_tokens = len(self._arrays["input_ids"])
        self.top_k = self._arrays["ids"].shape[1]
        self._rows_per_chunk = self._arrays["input_ids"].rows_per_chunk
        if self.num_tokens == 0 or self.window_length < 1:
            raise InvalidInputError(
                f"Fused dataset {self.folder} holds {self.num_tokens} tokens in windows of "
                f"{self.window_length}: there is nothing to train on. Fuse a split with documents."
            )

    def _check_arrays(self) -> None:
        """Raise CorruptionError unless the arrays belong together."""
        arrays = self._arrays
        lengths = {name: (len(array), array.rows_per_chunk) for name, array in arrays.items()}
        columns = {arrays[name].shape[1:] for name in WIDE_ARRAYS}
        if len(set(lengths.values())) != 1 or len(columns) != 1:
            raise CorruptionError(
                f"The arrays of {self.folder} differ in length (rows, and those of a chunk): "
                f"{lengths}. Fuse it again."
            )
        for name, dtype in SAMPLE_ARRAYS.items():
            actual, axes = arrays[name].dtype, len(arrays[name].shape)
            expected = 2 if name in WIDE_ARRAYS else 1
            if actual != dtype or axes != expected:
                raise CorruptionError(
                    f"{self.folder / name} has {axes} axes of {actual}; expected {expected} of "
                    f"{dtype}. Fuse it again."
                )
        recipe, num_tokens = self.plan["recipe"], self.plan["num_tokens"]
        planned = (
            (num_tokens, max(1, min(num_tokens, recipe["rows_per_shard"]))),
            (recipe["top_k"],),
        )
        if (lengths["ids"], arrays["ids"].shape[1:]) != planned:
            raise CorruptionError(
                f"The arrays of {self.folder} have {lengths['ids']} rows, and those of a chunk, of "
                f"{arrays['ids'].shape[1:]} entries; its plan has {planned[0]} of {planned[1]}. "
                "Fuse it again."
            )

    def _check_files(self) -> None:
        """Raise CorruptionError unless there are as many shards as the plan's tokens need.

        What is allocated for an epoch depends on the number of tokens alone.
        """
        rows = max(1, min(self.plan["num_tokens"], self.plan["recipe"]["rows_per_shard"]))
        expected = -(-self.plan["num_tokens"] // rows)
        try:
            with os.scandir(self.folder / "input_ids" / "c") as entries:
                found = sum(1 for _ in entries)
            size = (self.folder / "input_ids" / "c" / "0").stat().st_size
        except OSError:
            found, size = 0, 0
        if found < expected or size < 4 * rows:
            raise CorruptionError(
                f"{self.folder} has {found:,} shards; its plan has {expected:,} of {rows:,} "
                "positions. Fuse it again, or copy it again from a sound store."
            )

    def _check_starts(self, table: MappedArray) -> None:
        """Raise CorruptionError unless the table of windows divides the tokens into windows."""
        num_tokens = self.plan["num_tokens"]
        whole = (len(table),) == table.shape and table.rows_per_chunk == len(table)
        if not whole or not 2 <= len(table) <= num_tokens + 1 or table.dtype != np.int64:
            raise CorruptionError(
                f"{table.folder} is no table of windows of {num_tokens:,} tokens. Fuse it again."
            )
        problem = windows_problem(table.read(0, len(table)), num_tokens, self.window_length)
        if problem is not None:
            raise CorruptionError(f"{table.folder} {problem}. Fuse it again.")

    def __repr__(self) -> str:
        recipe = self.plan["recipe"]
        sources = ", ".join(str(source["cache"]) for source in recipe["sources"])
        return (
            f"FusedDataset({self.name!r}: {recipe['strategy']} of {sources}, "
            f"{self.num_tokens:,} target tokens in {len(self):,} windows of at most "
            f"{self.window_length:,}, {self.top_k} entries each)"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.details import settings_of, settings_table
        from fusestore.store.shown_html import tables_html
        from fusestore.store.shown_table import ShownTable

        facts = {
            "target tokens": f"{self.num_tokens:,}",
            "windows": f"{len(self):,} of at most {self.window_length:,} tokens",
            "entries": f"{self.top_k} per position, of {self.vocab_size:,} tokens",
            "rows are samples": "yes" if self.sampled else "no",
            "shards": "all are made" if self._make_shard is None else "made when they are read",
            "folder": str(self.folder),
            "digest": self.digest,
        }
        table = ShownTable(
            f"Fused dataset {self.name}", ["", ""], [[*row] for row in facts.items()]
        )
        return tables_html([table], folded=[settings_table(settings_of(self.plan))])

    def __len__(self) -> int:
        """Number of windows."""
        if self._starts is not None:
            return len(self._starts) - 1
        return -(-self.num_tokens // self.window_length)

    def __getitem__(self, window: int) -> dict[str, Tensor]:
        rows = self._rows([self._bounds(window)])
        return sample_of(rows, window % len(self), sampled=self.sampled)

    def __getitems__(self, windows: Sequence[int]) -> Sequence[dict[str, Tensor]]:
        """Several windows, for a DataLoader's batch: a sequence of samples.

        They share one memory, which `fusestore.data.collate` uses as the batch.
        """
        if not windows:
            return []
        bounds = [self._bounds(window) for window in windows]
        lengths, count = [stop - start for start, stop in bounds], len(self)
        numbers = [window % count for window in windows]
        return Windows(self._rows(bounds), lengths, numbers, sampled=self.sampled)

    def _rows(self, bounds: Sequence[tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
        """`SAMPLE_ARRAYS` of the concatenated positions `[start, stop)` of each pair."""
        if self._make_shard is not None:
            for start, stop in bounds:
                self._make_shards(start, stop)
        self._look_at_sizes()
        rows = empty_rows(sum(stop - start for start, stop in bounds), self.top_k)
        slices = chunk_slices(bounds, self._rows_per_chunk)
        for name, values in rows.items():
            self._arrays[name].gather(slices, values)
        return rows

    def _look_at_sizes(self) -> None:
        """Notice files that were cut while they are mapped; mostly too soon to look again."""
        now = time.monotonic()
        # The clock of another process, from which this was copied, may be ahead.
        if not 0 <= now - self._looked < SECONDS_BETWEEN_LOOKS:
            self._looked = now
            for array in self._arrays.values():
                array.check_sizes()

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def target(self) -> str:
        """Digest of the target's tokenizer."""
        return str(self.plan["recipe"]["target"])

    def to_polars(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> pl.DataFrame:
        """The fused rows as a table, one line a position.

        A line takes about 72 + 8 k bytes, with `decode` 16 more for every entry, and while the
        table is made three times as much. What is asked for is read whole; missing shards are
        made.

        Args:
            windows: index of one window, or consecutive ones, as in `range(0, 10)`; None for all.
            decode: add the columns `token`, `next_token` and `tokens`, the text of `token_id`,
                `next_id` and `ids`. Bytes that are no characters are shown in hexadecimal.
            limit: most lines. Without it, a table of more than 4 GiB is refused.
            vocabulary: of the target; that of the store that holds the dataset's folder unless
                given. `Fused.to_polars` gives its store's.

        Returns:
            window: int64; document, position: int32, the position in the document; token_id:
            int32; next_id: int32, −100 after a document's last token, −101 where it is not
            trained on; kind: how the position was aligned, none where it is not distilled;
            source: name of the only source, null for none or a mixture; ids: list of int32 and
            logprobs: list of float32, the entries by falling log-probability, null where the
            position is not distilled; tail: float32; known: float32, the share of the mass that
            is known. With `decode` also token and next_token: string, tokens: list of string.

        Raises:
            InvalidInputError: no such window, or too large a table.
            NotFoundError: `decode`, and no vocabulary of the target is found.
            CorruptionError: stored bytes are damaged.
        """
        return self._table(windows, limit, vocabulary, decode=decode).to_polars()

    def to_arrow(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> pa.Table:
        """The table of `to_polars` as Arrow's, of the extra `notebook`; arguments as there.

        Raises:
            MissingDependencyError: pyarrow is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(windows, limit, vocabulary, decode=decode).to_arrow()

    def to_xarray(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> xr.Dataset:
        """The numbers of `to_polars` over `position` and `entry`; arguments as there.

        Returns:
            Coordinates by position: window, document, document_position, token_id, with `decode`
            token. Variables: as the columns, with id −1 and log-probability −inf for no entry, an
            empty text for none, and has_row bool, whether the position is distilled.

        Raises:
            MissingDependencyError: xarray, of the extra `notebook`, is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(windows, limit, vocabulary, decode=decode).to_xarray()

    def _table(
        self,
        windows: int | range | None,
        limit: int | None,
        vocabulary: Vocabulary | None,
        *,
        decode: bool,
    ) -> PositionTable:
        from fusestore.cache.table import consecutive, limited, table_bytes
        from fusestore.data.fused_table import fused_table, positions_in_documents

        place = f"fused dataset {self.name!r}"
        first, last = consecutive(windows, len(self), "window", place)
        starts = self._window_starts(first, last)
        start, stop = int(starts[0]), int(starts[-1])
        stop = limited(start, stop, limit, table_bytes(self.top_k, decode=decode), place)
        if decode and vocabulary is None:
            vocabulary = self._vocabulary()
        self._make_shards(start, stop)
        rows = {
            name: MappedArray(self.folder / name).read(start, stop) for name in (*_ARRAYS, "known")
        }
        numbers = np.repeat(np.arange(first, last), np.diff(starts))[: stop - start]
        recipe = self.plan["recipe"]
        return fused_table(
            rows,
            numbers,
            positions_in_documents(rows["document"], self._position_in_document(start, stop)),
            [str(source["cache"]) for source in recipe["sources"]],
            vocabulary if decode else None,
            {
                "kind": "fused",
                "name": self.name,
                "digest": self.digest,
                "corpus": str(recipe["corpus"]),
                "split": str(recipe["split"]),
                "strategy": str(recipe["strategy"]),
                "target": self.target,
                "vocab_size": self.vocab_size,
                "top_k": self.top_k,
            },
        )

    def _window_starts(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """int64 [last - first + 1]: where windows begin, and where the last one ends."""
        if self._starts is not None:
            return self._starts.read(first, last + 1)
        starts = np.arange(first, last + 1, dtype=np.int64) * self.window_length
        return np.minimum(starts, self.num_tokens)

    def _position_in_document(self, start: int, stop: int) -> int:
        """The position of token `start`, one before `stop`, in its document."""
        if start == stop:
            return 0
        document = int(self._document(start, start + 1)[0])
        first = start
        while first:
            begin = max(0, first - self._rows_per_chunk)
            others = np.flatnonzero(self._document(begin, first) != document)
            if len(others):
                return start - (begin + int(others[-1]) + 1)
            first = begin
        return start

    def _document(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        self._make_shards(start, stop)
        return self._arrays["document"].read(start, stop)

    def _vocabulary(self) -> Vocabulary:
        """That of the target, in the store that the folder lies in."""
        from fusestore.store.layout import Store
        from fusestore.tokenizers.vocabulary_table import load_vocabulary

        store = Store(Location.parse(self.folder.parent.parent))
        try:
            return load_vocabulary(store, self.target)
        except NotFoundError as error:
            raise NotFoundError(
                f"No vocabulary of the target's tokenizer {self.target[:16]} lies beside "
                f"{self.folder}. Open the dataset in its store, as in open_store(…).open_fused(…), "
                "or give the vocabulary."
            ) from error

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The window at each position of an epoch, int64 [len(self)]."""
        return permutation(len(self), seed, epoch)

    def describe(self, windows: Sequence[int]) -> str:
        """Windows and the documents they touch, for messages."""
        documents = sorted({document for window in windows for document in self.documents(window)})
        return f"windows {list(windows)} (documents {documents}) of {self.name}"

    def place_of(self, window: int, position: int) -> str:
        """A position of a window, for messages."""
        row = self._bounds(window)[0] + position
        return f"Row {row:,} in shard {row // self._rows_per_chunk:,} of fused dataset {self.name}"

    def documents(self, window: int) -> list[int]:
        """Corpus indices of the documents that the window touches, ascending."""
        start, stop = self._bounds(window)
        self._make_shards(start, stop)
        return [int(i) for i in np.unique(self._arrays["document"].read(start, stop))]

    def largest_token_id(self) -> int:
        """The largest token id in the dataset; reads all ids, which makes all missing shards."""
        largest = 0
        for start in range(0, self.num_tokens, _ROWS_PER_SCAN):
            stop = min(start + _ROWS_PER_SCAN, self.num_tokens)
            self._make_shards(start, stop)
            for name in ("input_ids", "next_ids", "ids"):
                largest = max(largest, int(self._arrays[name].read(start, stop).max(initial=0)))
        return largest

    def _make_shards(self, start: int, stop: int) -> None:
        """Make the missing shards of these positions."""
        if self._make_shard is None:
            return
        rows = self._rows_per_chunk
        for shard in range(start // rows, -(-stop // rows)):
            if shard not in self._made_shards:
                if not self._finished(shard):
                    self._make_shard(shard)
                self._made_shards.add(shard)

    def _finished(self, shard: int) -> bool:
        """Whether the shard has a receipt of this plan."""
        receipt = Location.parse(self.folder) / receipt_path(shard_part(shard))
        try:
            content = manifest_content(receipt.read_prefix(MAX_MANIFEST_BYTES + 1), str(receipt))
        except NotFoundError:
            return False
        return bool(content.get("fingerprint_digest") == self.digest)

    def _bounds(self, window: int) -> tuple[int, int]:
        count = len(self)
        if not -count <= window < count:
            raise IndexError(f"Window {window} of a fused dataset with {count} windows.")
        if self._starts is not None:
            start, stop = self._starts.read(window % count, window % count + 2).tolist()
            return start, stop
        start = (window % count) * self.window_length
        return start, min(start + self.window_length, self.num_tokens)


def open_fused(
    store: str | os.PathLike[str] | Location,
    name: str,
    storage_options: Mapping[str, object] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    digest: str | None = None,
) -> FusedDataset:
    """Open fused dataset `name` of a store.

    A remote dataset is first copied to this machine: every file is checked, and an interrupted copy
    is resumed. A dataset in the shared form is unpacked to the local form. An unfinished dataset is
    made on demand, in its own folder or, for a remote store, in a folder of `cache_dir`.

    Args:
        store: folder or URL of the store.
        name: of the fused dataset.
        storage_options: of the URL's storage, such as `endpoint_url`; see `storage.options`.
        cache_dir: local folder for remote datasets, with one folder per digest; by default
            fusestore's folder in the user's cache. For local stores only used if the dataset is in
            the shared form.
        digest: `checksum` of its manifest (the SHA-256 of its content, not of the file), from the
            dataset's author. A local dataset is then read once to check every file.

    Raises:
        NotFoundError: the store has no such dataset.
        CorruptionError: it is damaged, or is not that of the digest.
        InvalidInputError: a name that no dataset can have, or a `cache_dir` that others may write.
    """
    root = Location.parse(store, storage_options)
    source = Store(root).fused(name)
    if not (source / "manifest.json").exists() and (source / FINGERPRINT_FILE).exists():
        if digest is not None:
            raise InvalidInputError(
                f"{source} is unfinished, so there is no digest to hold it to. Finish it with "
                "`fusestore fuse --materialize`."
            )
        return open_unfinished(root, source, cache_dir)
    content, manifest = _read_manifest(source)
    if digest is not None:
        check_digest(digest, json.loads(content)["checksum"], source)
    shared = manifest.get("form") == "shared"
    if source.is_local and not shared:
        if digest is not None:
            check_files_match(source, file_records(manifest, f"{source}/manifest.json"))
        return FusedDataset(source.path, plan=manifest["plan"])
    base = private_folder(cache_folder(cache_dir) / "fused", link=False)
    folder = base / hashlib.sha256(content).hexdigest()
    check_private(folder, link=False)
    with _renamed_when_complete(folder) as partial:
        if partial is not None and shared:
            from fusestore.fuse.shared import unpack_fused

            unpack_fused(source, Location.parse(partial), digest=digest)
        elif partial is not None:
            local = Location.parse(partial)
            records = file_records(manifest, f"{source}/manifest.json")
            remove_abandoned(local)
            copy_missing(source, local, records)
            publish(local / "manifest.json", content)
    return FusedDataset(folder)


def open_unfinished(
    store: Location, source: Location, cache_dir: str | os.PathLike[str] | None
) -> FusedDataset:
    """Open an unfinished dataset: its shards are made when they are read, on this machine.

    Args:
        store: holds the inputs.
        source: the dataset's folder.
        cache_dir: a remote dataset is made in a folder below it; as for `open_fused`.
    """
    plan = _read_plan(source, complete=False)
    if source.is_local:
        folder = source.path
    else:
        base = private_folder(cache_folder(cache_dir) / "on_demand", link=False)
        folder = private_folder(base / plan_digest(plan), link=False)
    try:
        paths = [FINGERPRINT_FILE, *(f"{name}/zarr.json" for name in _ARRAYS)]
        if _has_window_table(plan):
            paths += ["window_starts/zarr.json", "window_starts/c/0"]
        for path in paths:
            limit = MAX_METADATA_BYTES if path.endswith(".json") else _MAX_TABLE_BYTES
            content = (source / path).read_prefix(limit + 1)
            if len(content) > limit:
                raise CorruptionError(
                    f"{source / path} is larger than {limit:,} bytes. Fuse the dataset again."
                )
            if not source.is_local:
                publish(Location.parse(folder) / path, content)
    except NotFoundError as error:
        raise NotFoundError(
            f"The definition of {source} is incomplete: {error} Run the same `fusestore fuse`, or "
            "open the same recipe again."
        ) from error
    return FusedDataset(folder, ShardMaker(store.url, store.storage_options, str(folder)))


def plan_digest(plan: Mapping[str, Any]) -> str:
    """`FusionPlan.digest` of a plan's content."""
    return digest_bytes(canonical_json(plan))


def _has_window_table(plan: Mapping[str, Any]) -> bool:
    """As `Recipe.has_window_table`."""
    return bool(plan["recipe"]["packing"] != "stream")


def _read_plan(folder: Location, *, complete: bool) -> dict[str, Any]:
    if complete:
        plan: dict[str, Any] = _read_manifest(folder)[1]["plan"]
        return plan
    try:
        file = folder / FINGERPRINT_FILE
        plan = manifest_content(file.read_prefix(MAX_MANIFEST_BYTES + 1), str(file))
    except NotFoundError as error:
        raise NotFoundError(
            f"No fused dataset was begun at {folder}: it has no {FINGERPRINT_FILE}."
            f"{near_names(folder)} Make it with `fusestore fuse`."
        ) from error
    _check_plan(plan, f"{folder}/{FINGERPRINT_FILE}")
    return plan


def _check_plan(plan: Any, where: str) -> None:  # noqa: ANN401 - JSON from outside
    try:
        recipe = plan["recipe"]
        sizes = {name: recipe[name] for name in ("window_length", "top_k", "rows_per_shard")}
        sizes |= {name: plan[name] for name in ("vocab_size", "num_tokens")}
        wrong = {name: size for name, size in sizes.items() if type(size) is not int or size < 0}
        packing, target, sampled = recipe["packing"], recipe["target"], plan["sampled"]
    except (KeyError, TypeError) as error:
        raise CorruptionError(
            f"{where} is not the plan of a fused dataset: {error!r}. Fuse it again."
        ) from error
    wrong |= {} if packing in get_args(Packing) else {"packing": packing}
    wrong |= {} if isinstance(target, str) else {"target": target}
    wrong |= {} if isinstance(sampled, bool) else {"sampled": sampled}
    if wrong:
        raise CorruptionError(f"The plan {where} has impossible values: {wrong!r}. Fuse it again.")


def _read_manifest(folder: Location) -> tuple[bytes, dict[str, Any]]:
    """The file, and its content without the checksum, which was compared."""
    where = f"{folder}/manifest.json"
    try:
        content = (folder / "manifest.json").read_prefix(MAX_MANIFEST_BYTES + 1)
    except NotFoundError as error:
        raise NotFoundError(
            f"No complete fused dataset at {folder}: it has no manifest.json.{near_names(folder)} "
            "Make it with `fusestore fuse`, which resumes an interrupted fusion."
        ) from error
    try:
        manifest = manifest_content(content, where)
    except FormatVersionError:
        raise
    except ValueError as error:
        raise CorruptionError(
            f"{where} is not the manifest of a fused dataset: {error!r}. Fuse it again."
        ) from error
    _check_plan(manifest.get("plan"), where)
    return content, manifest


@contextlib.contextmanager
def _renamed_when_complete(folder: Path) -> Iterator[Path | None]:
    """A partial folder, which is renamed to `folder` after the body; else the next call resumes it.

    Yields:
        The partial folder, locked for this process; None if `folder` exists.
    """
    if folder.exists():
        yield None
        return
    name = f"{TEMPORARY_PREFIX}{folder.name[:16]}"
    with locked(private_folder(folder.parent.parent / "locks", link=False) / name):
        # Another process of this machine may have completed it before the lock.
        partial = None if folder.exists() else folder.with_name(name)
        yield partial
        if partial is not None:
            partial.rename(folder)
