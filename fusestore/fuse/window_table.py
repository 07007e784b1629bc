"""The first positions of windows, where these begin with documents: eight bytes each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.window_rules import windows_problem
from fusestore.storage.location import Location
from fusestore.store.receipts import FileRecord

_CHECKSUM_BYTES = 4
_PATHS = {"local": "window_starts/c/0", "shared": "local/window_starts/c/0"}


def read_window_starts(source: Location, manifest: FusedManifest) -> npt.NDArray[np.int64]:
    """The first position of each window, and T: int64 [W + 1], ascending.

    Args:
        source: the dataset's folder on any storage.
        manifest: its manifest.

    Raises:
        CorruptionError: the table is missing, or does not match the manifest.
        AccessDeniedError, StorageError: the storage failed.
    """
    path = _PATHS[manifest.form]
    file = source / path
    num_bytes = 8 * (manifest.num_windows + 1) + _CHECKSUM_BYTES
    record = manifest.files.get(path)
    # Checked before reading, which bounds memory: a window has at least one token.
    if (
        record is None
        or record.num_bytes != num_bytes
        or not 0 < manifest.num_windows <= manifest.num_tokens
    ):
        listed = "no size" if record is None else f"{record.num_bytes:,} bytes"
        raise CorruptionError(
            f"The manifest of {source} lists {listed} of {path}; expected {num_bytes:,} bytes for "
            f"{manifest.num_windows:,} windows of {manifest.num_tokens:,} tokens. {_AGAIN}"
        )
    try:
        data = file.read_range(0, num_bytes)
    except NotFoundError as error:
        raise CorruptionError(f"{file} is missing. {_AGAIN}") from error
    if FileRecord.of(data) != record:
        raise CorruptionError(f"{file} does not match its checksum. {_AGAIN}")
    starts = np.frombuffer(data, "<i8", manifest.num_windows + 1).astype(np.int64)
    problem = windows_problem(starts, manifest.num_tokens, manifest.plan.recipe.window_length)
    if problem is not None:
        raise CorruptionError(f"{file} {problem}. {_AGAIN}")
    return starts


_AGAIN = "Run `fusestore verify` on its store, then share the dataset again."
