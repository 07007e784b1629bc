"""What a thing in a store consists of, in the order in which a copy of it must appear.

Every kind has the same shape: a document that claims the name before any data (a fingerprint or a
plan; not every kind has one), parts whose files are sealed by a receipt, and the manifest that
makes it complete. Only manifests and receipts are read here, and none of their paths is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusestore.cache.manifest import TOKENS_PART, CacheManifest, content_digest
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.copy import check_paths
from fusestore.store.inventory import KINDS, find_thing, list_things
from fusestore.store.layout import Store, check_name
from fusestore.store.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    digest_bytes,
    manifest_content,
)
from fusestore.store.receipts import FileRecord, Receipt, shard_part

if TYPE_CHECKING:
    from fusestore.fuse.manifest import ShardReceipt

VOCABULARY = "vocabulary"
"""Kind of the vocabularies: files side by side in one folder, named by their tokenizer's digest."""

FOLDERS = {**KINDS, VOCABULARY: "vocabularies"}

MANIFEST = "manifest.json"

_DOCUMENTS_RECEIPT = "receipts/documents.json"

_REQUESTS = 16
"""Small documents that are read at a time."""


@dataclass(frozen=True)
class Document:
    """A JSON document of a thing, written create-only.

    Attributes:
        path: relative to the thing's folder.
        data: its bytes.
        identity: what it stands for. Two documents of one identity may differ in bytes where a
            table was encoded by another version of Polars.
    """

    path: str
    data: bytes
    identity: str


@dataclass(frozen=True)
class Part:
    """Files that are whole when `seal` is there; without one, when the thing's manifest is."""

    files: Mapping[str, FileRecord]
    seal: Document | None = None


@dataclass(frozen=True)
class ThingFiles:
    """All files of a complete thing.

    Attributes:
        name: `kind/name`.
        location: the folder its paths are relative to.
        claim: written before all else; None for a kind that has none.
        parts: what comes between.
        manifest: written last.
        sizes: bytes of every file that lies there now, by path.
    """

    name: str
    location: Location
    claim: Document | None
    parts: tuple[Part, ...]
    manifest: Document
    sizes: Mapping[str, int] = field(repr=False)


def folder_of(store: Store, name: str) -> Location:
    """The folder that the paths of the thing `kind/name` are relative to.

    Raises:
        InvalidInputError: not of that form, or a name that cannot be.
    """
    kind, separator, rest = name.partition("/")
    if not separator or kind not in FOLDERS:
        raise InvalidInputError(
            f"{name!r} names no thing: write KIND/NAME with a kind of {', '.join(FOLDERS)}."
        )
    folder = store.location / FOLDERS[kind]
    return folder if kind == VOCABULARY else folder / check_name(rest)


def names_in(store: Store) -> dict[str, bool]:
    """Every thing of the store by `kind/name`, vocabularies first, and whether it is complete.

    Raises:
        NotFoundError: there is no store.
    """
    things = {f"{thing.kind}/{thing.name}": thing.complete for thing in list_things(store)}
    files = set(store.names(FOLDERS[VOCABULARY]))
    tables = sorted(name.removesuffix(".parquet") for name in files if name.endswith(".parquet"))
    return {f"{VOCABULARY}/{name}": f"{name}.json" in files for name in tables} | things


def read_thing(store: Store, name: str) -> ThingFiles:
    """What the complete thing `kind/name` consists of.

    Raises:
        InvalidInputError: no such kind, or a manifest that names files outside its folder.
        NotFoundError: no such thing, or one that is not complete.
        CorruptionError: its manifest or a receipt is missing or damaged.
        FormatVersionError: written by a newer version of the format.
    """
    location = folder_of(store, name)
    kind, _, rest = name.partition("/")
    try:
        if kind == VOCABULARY:
            return _vocabulary(location, name, rest)
        manifest = read_document(location, MANIFEST, kind)
    except NotFoundError as error:
        raise _absent(store, name) from error
    try:
        return _READERS[kind](location, name, manifest)
    except NotFoundError as error:
        raise CorruptionError(f"{error} Run `fusestore verify {name}` there.") from error


def _absent(store: Store, name: str) -> NotFoundError:
    if names_in(store).get(name, True):
        kind, _, rest = name.partition("/")
        if kind != VOCABULARY:
            find_thing(store, name)
        return NotFoundError(f"There is no {kind} {rest!r} in {store.location}.")
    return NotFoundError(
        f"{name} in {store.location} is not complete; only complete things are shared. "
        "Finish it first: the command that began it goes on where it stopped."
    )


def read_document(location: Location, path: str, kind: str) -> Document:
    """A manifest, receipt or fingerprint of a thing of this kind, its own checksum checked.

    Raises:
        NotFoundError: no such file.
        CorruptionError, FormatVersionError, InvalidInputError: see `Manifest.load`.
    """
    file = location / path
    data = file.read_prefix(MAX_MANIFEST_BYTES + 1)
    content = manifest_content(data, str(file))
    keys = _identity_keys(kind, path)
    if not keys:
        return Document(path, data, digest_bytes(canonical_json(content)))
    if not content.keys() >= set(keys):
        raise InvalidInputError(f"{file} is not a document of a {kind}: no {', '.join(keys)}.")
    return Document(path, data, " ".join(str(content[key]) for key in keys))


def _identity_keys(kind: str, path: str) -> tuple[str, ...]:
    """What tells documents apart whose bytes may differ for one content; none: their digest."""
    if kind == "map":
        return ("content_digest",)
    if kind == VOCABULARY or (kind, path) == ("corpus", _DOCUMENTS_RECEIPT):
        return ("fingerprint_digest",)
    if kind == "corpus" and path.startswith("tokens/"):
        return ("corpus_digest", "tokenizer_digest", "add_bos", "arrays_digest")
    return ()


def _vocabulary(location: Location, name: str, digest: str) -> ThingFiles:
    manifest = read_document(location, f"{check_name(digest)}.json", VOCABULARY)
    receipt = Receipt.from_bytes(manifest.data, str(location / manifest.path))
    files = {f"{digest}.parquet", manifest.path}
    sizes = {path: size for path, size in location.sizes().items() if path in files}
    return ThingFiles(name, location, None, (_part(location, receipt.files),), manifest, sizes)


def _corpus(location: Location, name: str, manifest: Document) -> ThingFiles:
    from fusestore.corpus.manifest import TokensManifest

    sizes = location.sizes()
    seal = read_document(location, _DOCUMENTS_RECEIPT, "corpus")
    receipt = Receipt.from_bytes(seal.data, str(location / seal.path))
    parts = [_part(location, receipt.files, seal)]
    for path in sorted(sizes):
        folder, _, file = path.rpartition("/")
        # Tokens that were not finished are made again by whoever needs them.
        if folder.startswith("tokens/") and file == MANIFEST:
            seal = read_document(location, path, "corpus")
            tokens = TokensManifest.from_bytes(seal.data, str(location / path))
            if tokens.corpus_digest == manifest.identity:
                files = {f"{folder}/{file}": record for file, record in tokens.files.items()}
                parts.append(_part(location, files, seal))
    return ThingFiles(name, location, None, tuple(parts), manifest, sizes)


def _cache(location: Location, name: str, manifest: Document) -> ThingFiles:
    content = CacheManifest.from_bytes(manifest.data, str(location / MANIFEST))
    claim = read_document(location, "fingerprint.json", "cache")
    shards = range(len(content.fingerprint.plan))
    paths = [f"receipts/{part}.json" for part in (TOKENS_PART, *map(shard_part, shards))]
    seals = _read_all(location, paths, "cache")
    receipts = [Receipt.from_bytes(seal.data, str(location / seal.path)) for seal in seals]
    if (
        claim.identity != content.fingerprint_digest
        or content_digest(receipts) != content.content_digest
    ):
        raise CorruptionError(
            f"{location} has a fingerprint or receipts that are not those its manifest names. "
            f"Run `fusestore verify {name}`."
        )
    parts = tuple(
        _part(location, receipt.files, seal) for receipt, seal in zip(receipts, seals, strict=True)
    )
    return ThingFiles(name, location, claim, parts, manifest, location.sizes())


def _map(location: Location, name: str, manifest: Document) -> ThingFiles:
    from fusestore.align.vocabulary.stored_map import VocabularyMapManifest

    content = VocabularyMapManifest.from_bytes(manifest.data, str(location / MANIFEST))
    files = {"map.parquet": content.table}
    return ThingFiles(name, location, None, (_part(location, files),), manifest, location.sizes())


def _alignment(location: Location, name: str, manifest: Document) -> ThingFiles:
    from fusestore.align.manifest import AlignmentManifest

    content = AlignmentManifest.from_bytes(manifest.data, str(location / MANIFEST))
    claim = read_document(location, "fingerprint.json", "alignment")
    return _of_receipts(location, name, claim, content.files, Receipt, manifest)


def _fused(location: Location, name: str, manifest: Document) -> ThingFiles:
    from fusestore.fuse.manifest import FusedManifest, ShardReceipt

    content = FusedManifest.from_bytes(manifest.data, str(location / MANIFEST))
    claim = read_document(location, "recipe.json", "fused")
    kind = Receipt if content.form == "shared" else ShardReceipt
    return _of_receipts(location, name, claim, content.files, kind, manifest)


def _of_receipts(
    location: Location,
    name: str,
    claim: Document,
    files: Mapping[str, FileRecord],
    kind: type[Receipt] | type[ShardReceipt],
    manifest: Document,
) -> ThingFiles:
    """A thing whose manifest lists all its other files, receipts of some of them included."""
    others = dict(files)
    others.pop(claim.path, None)
    paths = sorted(path for path in others if path.startswith("receipts/"))
    parts = []
    for seal in _read_all(location, paths, name.partition("/")[0]):
        receipt = kind.from_bytes(seal.data, str(location / seal.path))
        parts.append(_part(location, receipt.files, seal))
        for path in (seal.path, *receipt.files):
            others.pop(path, None)
    # What no receipt names, such as the arrays' metadata, goes first.
    parts.insert(0, _part(location, others))
    return ThingFiles(name, location, claim, tuple(parts), manifest, location.sizes())


def _model(location: Location, name: str, manifest: Document) -> ThingFiles:
    from fusestore.merge.manifest import MergeManifest
    from fusestore.train.manifest import TrainingManifest

    merged = "merge" in manifest_content(manifest.data, str(location / MANIFEST))
    kind = MergeManifest if merged else TrainingManifest
    content = kind.from_bytes(manifest.data, str(location / MANIFEST))
    parts = (_part(location, content.files),)
    return ThingFiles(name, location, None, parts, manifest, location.sizes())


_READERS: Mapping[str, Callable[[Location, str, Document], ThingFiles]] = {
    "corpus": _corpus,
    "cache": _cache,
    "map": _map,
    "alignment": _alignment,
    "fused": _fused,
    "model": _model,
}


def _read_all(location: Location, paths: Sequence[str], kind: str) -> list[Document]:
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(lambda path: read_document(location, path, kind), paths))


def _part(
    location: Location, files: Mapping[str, FileRecord], seal: Document | None = None
) -> Part:
    check_paths(location, files)
    return Part(files, seal)
