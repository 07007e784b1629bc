"""Checking everything a store holds against the checksums its manifests carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fusestore.cache.verify import Finding, verify_cache
from fusestore.errors import FusestoreError, NotFoundError
from fusestore.inventory import Thing, find_thing, is_merged, list_things
from fusestore.storage.manifest import digest_bytes
from fusestore.storage.shards import FileRecord, Receipt
from fusestore.storage.store import Store
from fusestore.storage.urls import Location


def verify_store(
    store: Store, path: str | None = None, *, quick: bool = False
) -> dict[str, list[Finding]]:
    """Check one thing, or all things of a store.

    Args:
        store: the store.
        path: `kind/name`; None checks everything, the vocabularies included.
        quick: of caches, sizes and receipts only; of the rest, that the files are there.

    Returns:
        What is wrong, by `kind/name`; an empty list for a sound thing.

    Raises:
        NotFoundError: no such store or thing.
    """
    things = list_things(store) if path is None else [find_thing(store, path)]
    found = {f"{thing.kind}/{thing.name}": _verify(store, thing, quick) for thing in things}
    if path is None:
        found |= _verify_vocabularies(store)
    return found


def _verify(store: Store, thing: Thing, quick: bool) -> list[Finding]:
    if thing.kind == "cache":
        return verify_cache(thing.location, quick=quick)
    if thing.manifest is None:
        return [Finding("manifest.json", "is missing: unfinished; run the same command again")]
    try:
        return list(_CHECKS[thing.kind](store, thing, quick))
    except FusestoreError as error:
        return [Finding("manifest.json", str(error))]


def _verify_corpus(store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.corpus.build import open_corpus
    from fusestore.corpus.manifest import TokensManifest

    corpus = open_corpus(store, thing.name)
    receipt = Receipt.load(thing.location / "receipts" / "documents.json")
    if receipt.fingerprint_digest != corpus.digest:
        yield Finding("receipts/documents.json", "is of another corpus")
    yield from _check_files(thing.location, _sha256(receipt.files), quick)
    for name in (thing.location / "tokens").list():
        folder = thing.location / "tokens" / name
        try:
            manifest = TokensManifest.load(folder / "manifest.json")
        except FusestoreError as error:
            yield Finding(f"tokens/{name}/manifest.json", str(error))
            continue
        if manifest.corpus_digest != corpus.digest:
            yield Finding(f"tokens/{name}/manifest.json", "is of another corpus")
        for finding in _check_files(folder, _sha256(manifest.files), quick):
            yield Finding(f"tokens/{name}/{finding.file}", finding.problem)


def _verify_map(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.align.map_tables import VocabularyMapManifest

    manifest = VocabularyMapManifest.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, {"map.parquet": manifest.map_sha256}, quick)


def _verify_alignment(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.align.tables import AlignmentManifest

    manifest = AlignmentManifest.load(thing.location / "manifest.json")
    fingerprint = digest_bytes(manifest.fingerprint.to_bytes())
    parts = {part.name: part.sha256 for part in manifest.parts}
    yield from _check_files(thing.location, {"fingerprint.json": fingerprint, **parts}, quick)


def _verify_fused(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.fuse.manifest import FusedManifest

    manifest = FusedManifest.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, _sha256(manifest.files), quick)


def _verify_model(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.merge.manifest import MergeManifest
    from fusestore.train.manifest import TrainingManifest

    kind = MergeManifest if is_merged(thing) else TrainingManifest
    manifest = kind.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, manifest.files, quick)


_CHECKS: Mapping[str, Callable[[Store, Thing, bool], Iterator[Finding]]] = {
    "corpus": _verify_corpus,
    "map": _verify_map,
    "alignment": _verify_alignment,
    "fused": _verify_fused,
    "model": _verify_model,
}


def _sha256(files: Mapping[str, FileRecord]) -> dict[str, str]:
    return {path: record.sha256 for path, record in files.items()}


def _check_files(folder: Location, sha256: Mapping[str, str], quick: bool) -> Iterator[Finding]:
    if quick:
        yield from _missing(folder, list(sha256))
        return
    for name, expected in sha256.items():
        try:
            found = digest_bytes((folder / name).read_bytes())
        except NotFoundError:
            yield Finding(name, "is missing")
            continue
        if found != expected:
            yield Finding(name, f"has SHA-256 {found[:16]}…, the manifest says {expected[:16]}…")


def _missing(folder: Location, names: list[str]) -> Iterator[Finding]:
    for name in names:
        if not (folder / name).exists():
            yield Finding(name, "is missing")


def _verify_vocabularies(store: Store) -> dict[str, list[Finding]]:
    from fusestore.corpus.vocabulary_table import load_vocabulary

    found: dict[str, list[Finding]] = {}
    for name in sorted({name.rsplit(".", 1)[0] for name in store.names("vocabularies")}):
        try:
            load_vocabulary(store, name)
            found[f"vocabulary/{name}"] = []
        except FusestoreError as error:
            found[f"vocabulary/{name}"] = [Finding(f"{name}.parquet", str(error))]
    return found
