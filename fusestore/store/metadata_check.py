"""Whether the `zarr.json` of arrays say what the arrays are: other readers go by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.arrays import ArraySpec
from fusestore.store.findings import Finding
from fusestore.store.foreign_json import parse_foreign_json

MAX_METADATA_BYTES = 2**20
"""A `zarr.json` has less than two thousand bytes."""

_SERIALIZERS = {"raw": "bytes", "pcodec": "numcodecs.pcodec"}


def metadata_findings(folder: Location, specs: Iterable[ArraySpec]) -> Iterator[Finding]:
    """The arrays of a folder whose metadata are missing, or describe other arrays."""
    for spec in specs:
        path = f"{spec.name}/zarr.json"
        try:
            data = (folder / path).read_prefix(MAX_METADATA_BYTES + 1)
            content = parse_foreign_json(data, path, MAX_METADATA_BYTES)
            found = _described(content)
        except NotFoundError:
            yield Finding(path, "is missing")
            continue
        except (InvalidInputError, KeyError, TypeError, IndexError, AttributeError) as error:
            yield Finding(path, f"is not the metadata of an array: {error!r}"[:500])
            continue
        expected = _expected(spec)
        if found != expected:
            yield Finding(path, f"describes {found}; expected {expected}"[:500])


def _expected(spec: ArraySpec) -> dict[str, object]:
    codecs = [_SERIALIZERS[spec.codec], "crc32c"]
    outer = spec.shard_shape or spec.chunk_shape
    return {
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "files": list(outer),
        "chunks": list(spec.chunk_shape),
        "codecs": codecs,
    }


def _described(content: Any) -> dict[str, object]:  # noqa: ANN401 - JSON
    files = content["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, chunks = content["codecs"], files
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        codecs, chunks = inner["codecs"], inner["chunk_shape"]
    return {
        "shape": content["shape"],
        "data_type": content["data_type"],
        "files": files,
        "chunks": chunks,
        "codecs": [codec["name"] for codec in codecs],
    }
