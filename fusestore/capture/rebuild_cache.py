"""Makes damaged shards of a distribution cache again with the model that made them."""

from __future__ import annotations

from collections.abc import Sequence

from fusestore.cache.manifest import TOKENS_PART, CacheManifest, Fingerprint
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.rebuild_corpus import find_corpus
from fusestore.errors import CorruptionError
from fusestore.models.model import Model
from fusestore.progress import Reporter
from fusestore.storage.location import Location
from fusestore.store.findings import Finding
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt, receipt_path, shard_part


def trusted_fingerprint(location: Location) -> Fingerprint:
    """The cache's fingerprint, from its manifest or else from its own file.

    Raises:
        CorruptionError: neither is sound.
    """
    manifest = CacheManifest.load_if_sound(location / "manifest.json")
    if manifest is not None:
        return manifest.fingerprint
    fingerprint = Fingerprint.load_if_sound(location / "fingerprint.json")
    if fingerprint is None:
        raise CorruptionError(
            f"Neither manifest.json nor fingerprint.json of {location} is sound, so the settings "
            "of the cache are lost. Delete it and capture it again."
        )
    return fingerprint


def rebuild_cache(
    store: Store,
    name: str,
    findings: Sequence[Finding],
    model: Model,
    settings: CaptureSettings,
    reporter: Reporter,
) -> None:
    """Compute exactly the damaged shards again, and write other damaged files again.

    Args:
        store: holds the cache and its corpus.
        name: the cache's name.
        findings: all findings of `verify_cache`.
        model: the model that the fingerprint names.
        settings: device, batch size and the like; the fingerprint gives what changes the content.
        reporter: receives progress updates.

    Raises:
        CorruptionError: no shard contains the damage.
        NotFoundError: the store does not hold the corpus.
        IncompatibleError: the new bytes of a shard differ from the captured ones.
    """
    location = store.cache(name)
    fingerprint = trusted_fingerprint(location)
    files = {finding.file for finding in findings}
    parts = {finding.part for finding in findings} - {""}
    if not parts and files - {"fingerprint.json", "manifest.json"}:
        raise CorruptionError(f"No shard of {location} is damaged by itself. Capture it again.")
    corpus = find_corpus(store, fingerprint.corpus.digest)
    shards = [shard for shard in range(len(fingerprint.plan)) if shard_part(shard) in parts]
    redo = {shard: _receipt(location, fingerprint, shard) for shard in shards}
    if "fingerprint.json" in files:
        (location / "fingerprint.json").delete()
    if TOKENS_PART in parts:
        _remove_tokens_damage(location, findings)
    if "manifest.json" in files:
        (location / "manifest.json").delete()
    capture(
        store,
        name,
        model,
        corpus,
        _as_captured(fingerprint, settings),
        reporter=reporter,
        redo=redo,
    )


def _remove_tokens_damage(location: Location, findings: Sequence[Finding]) -> None:
    """Remove damaged files of the tokens part, so that the writer writes the part again.

    A sound receipt stays: the new files must match it, above all the order of ids.
    """
    receipt = location / receipt_path(TOKENS_PART)
    for finding in findings:
        if finding.part == TOKENS_PART and not finding.file.startswith("receipts/"):
            (location / finding.file).delete()
    if Receipt.load_if_sound(receipt) is None:
        receipt.delete()


def _receipt(location: Location, fingerprint: Fingerprint, shard: int) -> Receipt | None:
    """The shard's receipt, if it is sound."""
    receipt = Receipt.load_if_sound(location / receipt_path(shard_part(shard)))
    expected = (shard_part(shard), fingerprint.digest)
    if receipt is None or (receipt.part, receipt.fingerprint_digest) != expected:
        return None
    return receipt


def _as_captured(fingerprint: Fingerprint, settings: CaptureSettings) -> CaptureSettings:
    """The settings, with all values that the fingerprint holds."""
    content = {
        name: getattr(fingerprint, name)
        for name in CaptureSettings.model_fields
        if name in Fingerprint.model_fields
    }
    if fingerprint.logprob_step is None and fingerprint.profile == "fast":
        # None would mean the default grid, but sampled rows have no grid in any case.
        content["logprob_step"] = 0
    if fingerprint.dtype is None:
        content["dtype"] = "auto"
    content["bos"] = "always" if fingerprint.add_bos else "never"
    return settings.model_copy(update=content)
