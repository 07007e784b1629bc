"""Packing a fused dataset into the shared form, compressed for object storage, and unpacking it.

The local form has raw values for memory mapping. The shared form has the same arrays in pcodec, in
shards of about as many positions. The other files of the local form (manifest, receipts, metadata)
are copied unchanged into `local/`, so that packing and unpacking gives the same bytes, which are
checked against the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.fuse.folder import PLAN_FILE, metadata_files
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import (
    ArraySpec,
    array_metadata,
    encode_shard,
    group_metadata,
)
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.copy import matches
from fusestore.store.file_listing import FileListing
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.held_digest import check_digest
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part

_LOCAL = "local"

_MAX_BYTES = 2**28
"""Of a document or a table of windows."""


def pack_fused(
    local: Location, shared: Location, progress: Progress = ignore_progress
) -> FusedManifest:
    """Write the missing files of the shared form of a complete dataset in the local form.

    Args:
        local: the folder of the local form.
        shared: the folder of the shared form, on any storage.
        progress: receives the positions done.

    Returns:
        The manifest of the shared form.

    Raises:
        NotFoundError: `local` holds no complete dataset.
        InvalidInputError: it is not in the local form.
        CorruptionError: it is damaged.
        FingerprintMismatchError: `shared` holds another dataset.
    """
    manifest = _load(local, "local")
    write_fingerprint(shared, manifest.plan, "Fused dataset")
    if (shared / MANIFEST_FILE).exists():
        return FusedManifest.load(shared / MANIFEST_FILE)
    remove_abandoned(shared)
    arrays = shared_arrays(*_size(manifest))
    small = {
        PLAN_FILE: manifest.plan.to_bytes(),
        "zarr.json": group_metadata({"plan_digest": manifest.plan_digest}),
        f"{_LOCAL}/{MANIFEST_FILE}": manifest.to_bytes(),
        **{f"{array.name}/zarr.json": array_metadata(array) for array in arrays},
    }
    values = {array.file_name(shard) for array, shard in _shards(fused_arrays(*_size(manifest)))}
    for path, record in manifest.files.items():
        if path not in values and path != PLAN_FILE:
            small[f"{_LOCAL}/{path}"] = _checked(local, path, record)
    files = {path: FileRecord.of(data) for path, data in small.items()}
    for path, data in small.items():
        publish(shared / path, data)

    readers = [ArrayReader(local, array) for array in fused_arrays(*_size(manifest))]
    num_bytes = 0
    for shard in range(arrays[0].num_files):
        receipt = _finished(shared, shard, manifest.plan_digest)
        if receipt is None:
            receipt = _pack_shard(shared, arrays, readers, shard, manifest.plan_digest)
        files |= receipt.files
        files[receipt_path(shard_part(shard))] = FileRecord.of(receipt.to_bytes())
        num_bytes += receipt.num_bytes
        progress(receipt.stop, manifest.num_tokens)
    changed = {"form": "shared", "files": FileListing.of(files), "num_bytes": num_bytes}
    packed = manifest.model_copy(update=changed)
    packed.save(shared / MANIFEST_FILE)
    return packed


def unpack_fused(
    shared: Location,
    local: Location,
    progress: Progress = ignore_progress,
    *,
    digest: str | None = None,
) -> FusedManifest:
    """Write the missing files of the local form of a dataset in the shared form, byte for byte.

    Args:
        shared: the folder of the shared form, on any storage.
        local: the folder of the local form.
        progress: receives the positions done.
        digest: `checksum` of the manifest of the shared form, if one is expected.

    Returns:
        The manifest of the local form.

    Raises:
        NotFoundError: `shared` holds no complete dataset.
        InvalidInputError: it is not in the shared form.
        CorruptionError: it is damaged; damaged files were not written.
        FingerprintMismatchError: `local` holds another dataset.
    """
    packed = _load(shared, "shared")
    check_digest(digest, packed.digest, shared)
    manifest = _local_manifest(shared, packed)
    write_fingerprint(local, manifest.plan, "Fused dataset")
    remove_abandoned(local)
    if (local / MANIFEST_FILE).exists():
        return FusedManifest.load(local / MANIFEST_FILE)
    arrays = fused_arrays(*_size(manifest))
    readers = [
        ArrayReader(shared, array, packed.files) for array in shared_arrays(*_size(manifest))
    ]
    for shard in range(arrays[0].num_files):
        start, stop = arrays[0].rows_of(shard)
        for array, reader in zip(arrays, readers, strict=True):
            name = array.file_name(shard)
            if matches(local / name, manifest.files[name]):
                continue
            data = encode_shard(array, shard, reader.read(start, stop).astype(array.dtype))
            if FileRecord.of(data) != manifest.files[name]:
                raise CorruptionError(
                    f"{array.name} of {shared} unpacks to another {name} than its manifest has. "
                    f"Run `fusestore verify` on it, then share it again."
                )
            publish(local / name, data)
        progress(stop, manifest.num_tokens)
    # After all values, because a receipt proves that a shard is whole.
    values = {array.file_name(shard) for array, shard in _shards(arrays)}
    for name, record in manifest.files.items():
        if name not in values and name != PLAN_FILE and not matches(local / name, record):
            publish(local / name, _checked(shared, f"{_LOCAL}/{name}", record))
    manifest.save(local / MANIFEST_FILE)
    return manifest


def _local_manifest(shared: Location, packed: FusedManifest) -> FusedManifest:
    """The manifest of the local form to write; its paths are checked, because it is untrusted."""
    path = f"{_LOCAL}/{MANIFEST_FILE}"
    file = f"{shared}/{path}"
    if path not in packed.files:
        raise CorruptionError(f"The manifest of {shared} does not list {path}. Share it again.")
    try:
        manifest = FusedManifest.from_bytes(_checked(shared, path, packed.files[path]), file)
    except InvalidInputError as error:
        raise CorruptionError(f"{error}. Share it again.") from error
    if manifest.form != "local" or manifest.plan != packed.plan:
        raise CorruptionError(
            f"{file} is not the manifest of the dataset that {shared} holds in the shared form. "
            "Share it again."
        )
    arrays = fused_arrays(*_size(manifest))
    expected = {
        PLAN_FILE,
        *metadata_files(manifest.plan),
        *(array.file_name(shard) for array, shard in _shards(arrays)),
        *(receipt_path(shard_part(shard)) for shard in range(arrays[0].num_files)),
    }
    if manifest.plan.recipe.has_window_table:
        expected |= {"window_starts/zarr.json", "window_starts/c/0"}
    if manifest.files.keys() != expected:
        name = min(manifest.files.keys() ^ expected)
        raise CorruptionError(
            f"{file} {'lists' if name in manifest.files else 'does not list'} {name!r}, unlike "
            "the local form of its plan. Share it again."
        )
    return manifest


def _load(location: Location, form: str) -> FusedManifest:
    try:
        manifest = FusedManifest.load(location / MANIFEST_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"No complete fused dataset at {location}: it has no {MANIFEST_FILE}. Finish it with "
            "`fusestore fuse --materialize`."
        ) from error
    if manifest.form != form:
        raise InvalidInputError(
            f"The fused dataset at {location} is in the {manifest.form} form; expected the {form} "
            "form."
        )
    return manifest


def _size(manifest: FusedManifest) -> tuple[int, int, int]:
    recipe = manifest.plan.recipe
    return manifest.num_tokens, recipe.top_k, recipe.rows_per_shard


def _shards(arrays: tuple[ArraySpec, ...]) -> Iterator[tuple[ArraySpec, int]]:
    for array in arrays:
        for shard in range(array.num_files):
            yield array, shard


def _checked(folder: Location, path: str, record: FileRecord) -> bytes:
    if record.num_bytes > _MAX_BYTES:
        raise CorruptionError(
            f"{folder}/{path} has {record.num_bytes:,} bytes; such a file has at most "
            f"{_MAX_BYTES:,}. Share the dataset again."
        )
    # One byte more, so that a longer file differs from its record.
    data = (folder / path).read_prefix(record.num_bytes + 1)
    if FileRecord.of(data) != record:
        raise CorruptionError(
            f"{folder}/{path} does not match its checksum. Run `fusestore verify` on it, then "
            "restore it or make the dataset again."
        )
    return data


def _pack_shard(
    shared: Location,
    arrays: tuple[ArraySpec, ...],
    readers: list[ArrayReader],
    shard: int,
    plan_digest: str,
) -> Receipt:
    start, stop = arrays[0].rows_of(shard)
    files = {
        array.file_name(shard): encode_shard(
            array, shard, reader.read(start, stop).astype(array.dtype)
        )
        for array, reader in zip(arrays, readers, strict=True)
    }
    return Receipt.publish(shared, shard_part(shard), (start, stop), plan_digest, files)


def _finished(shared: Location, shard: int, plan_digest: str) -> Receipt | None:
    try:
        receipt = Receipt.load(shared / receipt_path(shard_part(shard)))
    except NotFoundError:
        return None
    whole = all((shared / path).exists() for path in receipt.files)
    return receipt if whole and receipt.fingerprint_digest == plan_digest else None
