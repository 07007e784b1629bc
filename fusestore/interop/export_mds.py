"""Export to MDS, the shards that mosaicml-streaming reads.

A folder of `shard.{:05d}.mds` and `index.json`. A shard is

    number of samples   uint32, little-endian as all of it
    offsets             uint32 [samples + 1], of each sample in the file
    configuration       JSON: names, encodings and sizes of the columns, by name
    samples             uint32 sizes of the columns of no fixed size, then the columns' values

and an array of a type in its encoding: a byte with the number of its dimensions and the width of
their sizes, the sizes, the values. We write it ourselves, because the package asks for older
versions of numpy and transformers than we need (docs/decisions/0056-layouts-of-trainers.md).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.reader import Cache
from fusestore.errors import IncompatibleError
from fusestore.interop.export import CachedDocument, cached_documents, refuse_samples
from fusestore.progress import Progress

SIZE_LIMIT = 2**26
"""Bytes of a shard, unless one document has more; the default of streaming."""

_MOST_BYTES = 2**32 - 1
"""Offsets are uint32."""

_COLUMNS = {
    "document": "int",
    "has_row": "ndarray:uint8",
    "ids": "ndarray:int32",
    "input_ids": "ndarray:int32",
    "label_logprob": "ndarray:float32",
    "logprobs": "ndarray:float32",
    "tail": "ndarray:float32",
}
_SIZES = [8 if encoding == "int" else None for encoding in _COLUMNS.values()]


def export_mds(cache: Cache, path: Path, progress: Progress) -> None:
    """A folder of MDS shards, a document a sample.

    Columns: document; input_ids int32 [n]; ids int32 and logprobs float32 [n, k], by falling
    log-probability, −inf where there is no entry or no row; has_row uint8 [n]; tail and
    label_logprob float32 [n], NaN where they are not known.
    """
    refuse_samples(cache, "mds")
    path.mkdir()
    writer = _Writer(path)
    for document in cached_documents(cache, progress):
        writer.add(_sample(document))
    writer.close()


class _Writer:
    """Writes samples into shards; memory holds one shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._settings: dict[str, Any] = {
            "column_encodings": list(_COLUMNS.values()),
            "column_names": list(_COLUMNS),
            "column_sizes": _SIZES,
            "compression": None,
            "format": "mds",
            "hashes": ["sha1"],
            "size_limit": SIZE_LIMIT,
            "version": 2,
        }
        self._header = json.dumps(self._settings, sort_keys=True).encode()
        self._samples: list[bytes] = []
        self._size = 0
        self._shards: list[dict[str, Any]] = []

    def add(self, sample: bytes) -> None:
        """Add a sample; a shard that has no room for it is written."""
        if self._samples and self._size + 4 + len(sample) > SIZE_LIMIT:
            self._write()
        if not self._samples:
            self._size = 8 + len(self._header)
        self._size += 4 + len(sample)
        self._samples.append(sample)

    def close(self) -> None:
        """Write the last shard and the index."""
        if self._samples:
            self._write()
        index = {"shards": self._shards, "version": 2}
        text = json.dumps(index, sort_keys=True)
        (self._path / "index.json").write_text(text, encoding="utf-8")

    def _write(self) -> None:
        if self._size > _MOST_BYTES:
            raise IncompatibleError(
                f"A document takes {self._size:,} bytes, and a shard of the layout mds has at "
                f"most {_MOST_BYTES:,}. Export to parquet, numpy or safetensors."
            )
        count = len(self._samples)
        begin = 4 + 4 * (count + 1) + len(self._header)
        offsets = begin + np.cumsum([0, *map(len, self._samples)])
        data = b"".join(
            [
                np.array([count], "<u4").tobytes(),
                offsets.astype("<u4").tobytes(),
                self._header,
                *self._samples,
            ]
        )
        name = f"shard.{len(self._shards):05d}.mds"
        (self._path / name).write_bytes(data)
        hashes = {"sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest()}
        raw_data = {"basename": name, "bytes": len(data), "hashes": hashes}
        part = {"raw_data": raw_data, "samples": count, "zip_data": None}
        self._shards.append({**self._settings, **part})
        self._samples = []


def _sample(document: CachedDocument) -> bytes:
    rows = document.rows
    arrays = {
        "has_row": document.has_row.astype("u1"),
        "ids": rows.ids.astype("<i4"),
        "input_ids": document.token_ids.astype("<i4"),
        "label_logprob": rows.label_logprob.astype("<f4"),
        "logprobs": rows.logprobs.astype("<f4"),
        "tail": rows.tail.astype("<f4"),
    }
    encoded = [_encoded(arrays[name]) for name in _COLUMNS if name in arrays]
    sizes = np.array([len(each) for each in encoded], "<u4")
    number = np.array([document.index], "<i8")
    return b"".join([sizes.tobytes(), number.tobytes(), *encoded])


def _encoded(array: npt.NDArray[Any]) -> bytes:
    """An array of a type that its column names, with its shape."""
    largest = max(array.shape)
    width = next(code for code, bits in enumerate((8, 16, 32, 64)) if largest < 1 << bits)
    shape = np.array(array.shape, f"<u{1 << width}")
    return bytes([array.ndim << 2 | width]) + shape.tobytes() + array.tobytes()
