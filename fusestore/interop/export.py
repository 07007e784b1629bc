"""`export_cache`: the rows of a cache in a layout that other tools read."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.rows import Rows
from fusestore.errors import AlreadyExistsError, IncompatibleError, InvalidInputError
from fusestore.interop.formats import EXPORTS, check_format, load
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.storage.disk_errors import disk_errors
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen

Exporter = Callable[[Cache, Path, Progress], None]
"""Writes a cache to a path that does not exist yet; progress counts tokens."""


@dataclass(frozen=True)
class CachedDocument:
    """One document of a cache.

    Attributes:
        index: in the corpus.
        token_ids: int32 [n].
        rows: one a token.
        has_row: bool [n].
    """

    index: int
    token_ids: npt.NDArray[np.int32]
    rows: Rows
    has_row: npt.NDArray[np.bool_]


class Exported(Frozen):
    """What `fusestore export --json` prints.

    Attributes:
        cache: its name.
        format: the layout.
        path: where it was written.
        num_documents, num_tokens: of the cache.
        num_bytes: of all files.
    """

    cache: str
    format: str
    path: str
    num_documents: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    num_bytes: int = Field(ge=0)


def export_cache(
    store: Store,
    cache: Cache | str,
    layout: str,
    path: str | os.PathLike[str],
    *,
    reporter: Reporter | None = None,
) -> Exported:
    """Write the rows of a cache in another layout.

    Args:
        store: holds the cache.
        cache: it, or its name.
        layout: the format; see `interop.formats`.
        path: a file or folder of this machine that does not exist.
        reporter: receives progress updates.

    Raises:
        NotFoundError: no such cache.
        AlreadyExistsError: something is at the path.
        InvalidInputError: no such format, or no folder to write in.
        IncompatibleError: the layout cannot hold the cache's rows.
        AccessDeniedError, StorageError: the disk is full, read-only or broken.
    """
    check_format(layout, EXPORTS, "export to")
    write: Exporter = load(EXPORTS[layout])
    opened = open_cache(store, cache) if isinstance(cache, str) else cache
    target = Path(os.fspath(path)).expanduser()
    if "://" in os.fspath(path):
        raise InvalidInputError(f"{os.fspath(path)} is a URL; a cache is exported to this machine.")
    if target.exists():
        raise AlreadyExistsError(
            f"{target} is there already. Name another path, or remove it first."
        )
    if not target.parent.is_dir():
        raise InvalidInputError(f"There is no folder {target.parent} to write {target.name} in.")
    name = opened.location.name
    draft = target.with_name(f".{target.name}.part")
    reporter = reporter or SilentReporter()
    with disk_errors(target.parent, f"Cache {name}"):
        _remove(draft)
        try:
            with reporter.stage(f"Exporting {name}", "tokens") as progress:
                write(opened, draft, progress)
            draft.rename(target)
        finally:
            _remove(draft)
    files = [target] if target.is_file() else [each for each in target.rglob("*") if each.is_file()]
    return Exported(
        cache=name,
        format=layout,
        path=str(target),
        num_documents=opened.fingerprint.num_documents,
        num_tokens=opened.fingerprint.num_tokens,
        num_bytes=sum(each.stat().st_size for each in files),
    )


def cached_documents(cache: Cache, progress: Progress) -> Iterator[CachedDocument]:
    """All documents of a cache with tokens, in order."""
    offsets = cache.document_offsets.tolist()
    for index, (start, stop) in enumerate(itertools.pairwise(offsets)):
        if stop > start:
            token_ids, _ = cache.read_tokens(start, stop)
            yield CachedDocument(index, token_ids, cache[start:stop], cache.kept.mask(start, stop))
        progress(stop, offsets[-1])


def rows_for_tokens(cache: Cache, document: CachedDocument, layout: str) -> tuple[int, int]:
    """Rows `[first, last)` of a document, for layouts with a row for each token up to the last.

    The row of the last token, which no token follows, is left out.

    Raises:
        IncompatibleError: tokens between the first and the last row have none.
    """
    last = len(document.token_ids) - 1
    found = np.flatnonzero(document.has_row[:last])
    first = int(found[0]) if len(found) else last
    if not document.has_row[first:last].all():
        raise IncompatibleError(
            f"Document {document.index} of cache {cache.location.name!r} lacks the rows of some "
            f"tokens between others, which the layout {layout} cannot express. Export to "
            "numpy, safetensors, parquet or datasets."
        )
    return first, last


def refuse_samples(cache: Cache, layout: str) -> None:
    """Refuse counts of draws, which are no log-probabilities.

    Raises:
        IncompatibleError: the cache holds samples.
    """
    if cache.fingerprint.selection == "sampled":
        raise IncompatibleError(
            f"Cache {cache.location.name!r} holds random draws, which the layout {layout} has no "
            "place for. Export to parquet or datasets."
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
