"""Checking everything a store holds against the checksums its manifests carry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from fusestore.cache.verify import Finding, load_or_tell, verify_cache
from fusestore.errors import (
    CorruptionError,
    FormatVersionError,
    FusestoreError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.inventory import Thing, find_thing, is_merged, list_things
from fusestore.store.layout import Store
from fusestore.store.manifest import digest_bytes
from fusestore.store.receipts import FileRecord, Receipt


def verify_store(
    store: Store, path: str | None = None, *, quick: bool = False
) -> dict[str, list[Finding]]:
    """Check one thing, or all things of a store.

    Args:
        store: the store.
        path: `kind/name`; None checks everything, the vocabularies included.
        quick: sizes, receipts and manifests only; the data are not read.

    Returns:
        What is wrong, by `kind/name`; an empty list for a sound thing.

    Raises:
        NotFoundError: no such store or thing.
    """
    if path is not None and path.startswith("vocabulary/"):
        return {path: _verify_vocabulary(store, path.removeprefix("vocabulary/"))}
    things = list_things(store) if path is None else [find_thing(store, path)]
    found = {f"{thing.kind}/{thing.name}": _verify(store, thing, quick) for thing in things}
    if path is None:
        names = sorted({name.rsplit(".", 1)[0] for name in store.names("vocabularies")})
        found |= {f"vocabulary/{name}": _verify_vocabulary(store, name) for name in names}
    return found


def _verify(store: Store, thing: Thing, quick: bool) -> list[Finding]:
    if thing.manifest is None and thing.kind == "fused":
        return list(_verify_begun(store, thing, quick))
    if thing.manifest is None and thing.kind != "cache":
        return [Finding("manifest.json", "is missing: unfinished; run the same command again")]
    try:
        return list(_CHECKS[thing.kind](store, thing, quick))
    except _DAMAGE as error:
        return [Finding("manifest.json", str(error))]


_DAMAGE = (CorruptionError, FormatVersionError, InvalidInputError, NotFoundError)
"""What reading something damaged raises; that the storage fails says nothing about the data."""


def _verify_cache(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    yield from verify_cache(thing.location, quick=quick)


def _verify_corpus(store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.corpus.build import open_corpus
    from fusestore.corpus.manifest import TokensManifest

    corpus = open_corpus(store, thing.name)
    found: list[Finding] = []
    receipt = load_or_tell(Receipt, thing.location, "receipts/documents.json", found)
    if receipt is not None:
        if receipt.fingerprint_digest != corpus.digest:
            found.append(Finding("receipts/documents.json", "is of another corpus"))
        found += _check_files(thing.location, receipt.files, quick)
    for name in (thing.location / "tokens").list():
        manifest = load_or_tell(
            TokensManifest, thing.location, f"tokens/{name}/manifest.json", found
        )
        if manifest is None:
            continue
        if manifest.corpus_digest != corpus.digest:
            found.append(Finding(f"tokens/{name}/manifest.json", "is of another corpus"))
        files = {f"tokens/{name}/{file}": record for file, record in manifest.files.items()}
        found += _check_files(thing.location, files, quick)
    yield from found


def _verify_map(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.align.vocabulary.stored_map import VocabularyMapManifest

    manifest = VocabularyMapManifest.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, {"map.parquet": manifest.table}, quick)


def _verify_alignment(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.align.manifest import AlignmentManifest

    manifest = AlignmentManifest.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, manifest.files, quick)


def _verify_fused(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.fuse.manifest import FusedManifest

    manifest = FusedManifest.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, manifest.files, quick)


def _verify_begun(store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    """A fused dataset whose shards are made when they are read: those that are made are checked."""
    from fusestore.fuse.folder import FusedFolder, metadata_files
    from fusestore.fuse.manifest import FusionPlan, ShardReceipt
    from fusestore.fuse.resolve import find_inputs

    found: list[Finding] = []
    plan = load_or_tell(FusionPlan, thing.location, "recipe.json", found)
    if plan is None:
        yield from found
        return
    expected = metadata_files(plan)
    if plan.recipe.packing == "document":
        # Where windows begin follows from the documents' lengths, which the inputs know.
        with contextlib.suppress(FusestoreError):
            inputs = find_inputs(store, plan.recipe, plan=plan)
            expected |= FusedFolder(thing.location, inputs).metadata
    metadata = {path: FileRecord.of(data) for path, data in expected.items()}
    yield from _check_files(thing.location, metadata, quick)
    num_rows = 0
    for name in (thing.location / "receipts").list():
        receipt = load_or_tell(ShardReceipt, thing.location, f"receipts/{name}", found)
        if receipt is not None and receipt.plan_digest == plan.digest:
            num_rows += receipt.stop - receipt.start
            found += _check_files(thing.location, receipt.files, quick)
    yield from found
    if num_rows == plan.num_tokens:
        yield Finding(
            "manifest.json",
            "is missing although every shard is there: run the same command again, or "
            "`fusestore fuse --materialize`",
        )


def _verify_model(_store: Store, thing: Thing, quick: bool) -> Iterator[Finding]:
    from fusestore.merge.manifest import MergeManifest
    from fusestore.train.manifest import TrainingManifest

    kind = MergeManifest if is_merged(thing) else TrainingManifest
    manifest = kind.load(thing.location / "manifest.json")
    yield from _check_files(thing.location, manifest.files, quick)


_CHECKS: Mapping[str, Callable[[Store, Thing, bool], Iterator[Finding]]] = {
    "corpus": _verify_corpus,
    "cache": _verify_cache,
    "map": _verify_map,
    "alignment": _verify_alignment,
    "fused": _verify_fused,
    "model": _verify_model,
}


def _check_files(
    folder: Location, files: Mapping[str, FileRecord], quick: bool
) -> Iterator[Finding]:
    """What is wrong with files: their sizes when quick, else every byte."""
    sizes = folder.sizes()
    for name, record in files.items():
        if name not in sizes:
            yield Finding(name, "is missing")
        elif sizes[name] != record.num_bytes:
            yield Finding(name, f"has {sizes[name]:,} bytes, {record.num_bytes:,} were written")
        elif not quick:
            found = digest_bytes((folder / name).read_bytes())
            if found != record.sha256:
                yield Finding(name, f"has SHA-256 {found[:16]}…, {record.sha256[:16]}… was written")


def _verify_vocabulary(store: Store, name: str) -> list[Finding]:
    """A vocabulary is small: quick or not, all of it is read."""
    from fusestore.tokenizers.vocabulary_table import load_vocabulary

    try:
        load_vocabulary(store, name)
    except _DAMAGE as error:
        return [Finding(f"{name}.parquet", str(error))]
    return []
