"""The fit as a kind of artifact: a few numbers, named by their digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fusestore.fuse.fits.manifest import FitFingerprint, FitManifest
from fusestore.store.artifact_types import DocumentSchema, Input
from fusestore.store.findings import Finding
from fusestore.store.layout import Store
from fusestore.store.registry import ArtifactKind


class FitKind(ArtifactKind):
    """The parameters of a learned strategy."""

    name, folder, title = "fit", "fits", "fit"
    named_by_user, made_on_demand = False, True
    unfinished = "delete it; `fusestore fuse` fits again"

    def parse(self, data: bytes, file: str) -> FitManifest:
        """The fit's manifest."""
        return FitManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its strategy, sources and split."""
        fingerprint = manifest["fingerprint"]
        by = "" if fingerprint["by"] == "global" else f" by {fingerprint['by']}"
        sources = " + ".join(source["cache"] for source in fingerprint["sources"])
        return (
            f"{fingerprint['method']}{by} of {sources}, fitted on {manifest['num_positions']:,} "
            f"tokens of {fingerprint['corpus']} {fingerprint['split']}"
        )

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """The corpus, and each source's cache, map and alignment."""
        fingerprint = manifest["fingerprint"]
        yield Input("corpus", str(fingerprint["corpus_digest"]), str(fingerprint["corpus"]))
        for source in fingerprint["sources"]:
            yield Input("cache", str(source["cache_digest"]), str(source["cache"]))
            for kind in ("vocabulary_map", "alignment"):
                digest = source[f"{kind}_digest"]
                if digest is not None:
                    yield Input(kind.removeprefix("vocabulary_"), str(digest))

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """Delete it: it is made again when it is needed."""
        del finding
        return f"fusestore rm {self.name}/{name} --store {store.location}, then fuse again"

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint and manifest."""
        root = "fits/<fit>"
        return {
            "fit-fingerprint": DocumentSchema(FitFingerprint, f"{root}/fingerprint.json"),
            "fit": DocumentSchema(FitManifest, f"{root}/manifest.json"),
        }
