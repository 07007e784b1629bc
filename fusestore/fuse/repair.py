"""Making damaged shards of a fused dataset again from the caches and alignments it came from."""

from __future__ import annotations

from fusestore.align.repair import find_cache, find_vocabulary_map
from fusestore.align.stored import Alignment, open_alignment
from fusestore.corpus.repair import find_corpus, kept_tokens
from fusestore.errors import CorruptionError, FusestoreError, NotFoundError
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.manifest import FusedManifest, FusionPlan, ShardReceipt, SourceDigests
from fusestore.fuse.materialize import MANIFEST_FILE, PLAN_FILE, materialize
from fusestore.storage.manifest import check_repaired
from fusestore.storage.shards import FileRecord
from fusestore.storage.store import Store
from fusestore.storage.urls import Location


def repair_fused(store: Store, name: str) -> None:
    """Fuse exactly the damaged shards again, and write anew what else is damaged.

    Raises:
        NotFoundError, CorruptionError: what it was made from is not there, or damaged.
        IncompatibleError: it comes out otherwise.
    """
    location = store.fused(name)
    old = FusedManifest.load_if_sound(location / MANIFEST_FILE)
    kept = FusionPlan.load_if_sound(location / PLAN_FILE)
    plan = kept if old is None else old.plan
    if plan is None:
        raise CorruptionError(
            f"Neither manifest.json nor recipe.json of {location} is sound, so nothing says what "
            "was fused. Delete it and run `fusestore fuse` again."
        )
    corpus = find_corpus(store, plan.corpus_digest)
    documents = corpus.split_documents(plan.recipe.split)
    tokens = next(
        tokens
        for tokens in kept_tokens(corpus, plan.recipe.target)
        if tokens.take(documents).num_tokens == plan.num_tokens
    )
    sources = [_source(store, digests) for digests in plan.inputs]
    target_cache = None
    if plan.recipe.target_cache is not None and plan.target_cache_digest is not None:
        own = SourceDigests(
            cache=plan.recipe.target_cache,
            cache_digest=plan.target_cache_digest,
            vocabulary_map_digest=None,
            alignment_digest=None,
        )
        target_cache = _source(store, own)
    (location / MANIFEST_FILE).delete()
    if kept != plan:
        (location / PLAN_FILE).delete()
    _forget_damaged(location, plan)
    made = materialize(
        location,
        plan.recipe,
        sources,
        target_tokens=tokens,
        documents=documents,
        vocab_size=plan.vocab_size,
        corpus_digest=plan.corpus_digest,
        target_cache=target_cache,
    )
    check_repaired(old, made, location)


def _source(store: Store, digests: SourceDigests) -> SourceInput:
    cache = find_cache(store, digests.cache_digest)
    pairs, alignment = digests.vocabulary_map_digest, digests.alignment_digest
    return SourceInput(
        name=digests.cache,
        cache=cache,
        cache_digest=cache.digest,
        corpus_digest=cache.fingerprint.corpus.digest,
        vocab_size=cache.fingerprint.model.vocab_size,
        target_id=None if pairs is None else find_vocabulary_map(store, pairs).target_id,
        alignment=None if alignment is None else _find_alignment(store, alignment),
        vocabulary_map_digest=pairs,
        alignment_digest=alignment,
    )


def _find_alignment(store: Store, digest: str) -> Alignment:
    for name in store.names("alignments"):
        try:
            alignment = open_alignment(store.alignment(name))
        except FusestoreError:
            continue
        if alignment.manifest.digest == digest:
            return alignment
    raise NotFoundError(f"{store.location} holds no sound alignment of digest {digest[:16]}.")


def _forget_damaged(location: Location, plan: FusionPlan) -> None:
    """Remove the receipts of shards that are not whole: a shard without receipt is made again."""
    for name in (location / "receipts").list():
        file = location / "receipts" / name
        receipt = ShardReceipt.load_if_sound(file)
        if receipt is None or receipt.plan_digest != plan.digest or not _holds(location, receipt):
            file.delete()


def _holds(location: Location, receipt: ShardReceipt) -> bool:
    try:
        return all(
            FileRecord.of((location / path).read_bytes()) == record
            for path, record in receipt.files.items()
        )
    except NotFoundError:
        return False
