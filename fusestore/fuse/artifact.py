"""The fused dataset as a kind of artifact: local or shared form, complete or made on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusestore.errors import FusestoreError
from fusestore.fuse.manifest import FusedManifest, FusedReceipt, FusionPlan
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.artifact_types import Conversion, DocumentSchema, Input, RebuildTools
from fusestore.store.findings import Finding, check_files, load_or_report
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord, Receipt
from fusestore.store.registry import Artifact, ArtifactKind


class FusedKind(ArtifactKind):
    """A fused dataset, which may be used while its shards are made."""

    name, folder, title = "fused", "fused", "fused dataset"
    made_by = "Make one with `fusestore fuse`."
    unfinished = (
        "its other shards are made when they are read, or by `fusestore fuse --materialize`"
    )
    usable_unfinished = True

    def parse(self, data: bytes, file: str) -> FusedManifest:
        """The dataset's manifest."""
        return FusedManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its strategy, size and form."""
        form = ", shared form" if manifest["form"] == "shared" else ""
        return (
            f"{manifest['plan']['recipe']['strategy']}, {manifest['num_tokens']:,} tokens, "
            f"{manifest['num_windows']:,} windows{form}"
        )

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """The corpus, each source's cache, map and alignment, and the fit."""
        plan = manifest["plan"]
        yield Input("corpus", str(plan["corpus_digest"]), str(plan["recipe"]["corpus"]))
        for source in plan["inputs"]:
            yield Input("cache", str(source["cache_digest"]), str(source["cache"]))
            for kind in ("vocabulary_map", "alignment"):
                digest = source[f"{kind}_digest"]
                if digest is not None:
                    yield Input(kind.removeprefix("vocabulary_"), str(digest))
        if plan["recipe"].get("fit") is not None:
            yield Input("fit", str(plan["recipe"]["fit"]))
        if plan["target_cache_digest"] is not None:
            yield Input("cache", str(plan["target_cache_digest"]))

    def begun_inputs(self, fingerprint: Mapping[str, Any]) -> Iterable[Input]:
        """Its fingerprint is the plan."""
        return self.inputs({"plan": fingerprint})

    def num_tokens(self, manifest: Mapping[str, Any]) -> int:
        """Target tokens."""
        return int(manifest["num_tokens"])

    def digest(self, manifest: Mapping[str, Any]) -> str:
        """The digest of its plan, whatever its name and form."""
        return str(manifest["plan_digest"])

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """All files and, unless `quick`, rows of a complete dataset; else its existing shards."""
        if artifact.complete:
            findings = list(super().check(store, artifact, quick=quick))
            if not findings and not quick:
                from fusestore.fuse.verify import row_findings

                manifest = FusedManifest.load(artifact.location / MANIFEST_FILE)
                findings += row_findings(artifact.location, manifest)
            return findings
        return _check_unfinished(store, artifact.location, quick)

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """See `rebuild_fused`: only damaged shards are fused again."""
        from fusestore.fuse.rebuild_fused import rebuild_fused

        del findings, tools
        rebuild_fused(store, artifact.name)

    def conversion(self, source: Location, target: Location) -> Conversion | bool:
        """See `change_of_form`."""
        from fusestore.fuse.forms import change_of_form

        return change_of_form(source, target)

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Plan, receipts of both forms, manifest."""
        root = "fused/<fused>"
        return {
            "fused-fingerprint": DocumentSchema(FusionPlan, f"{root}/fingerprint.json"),
            "fused-receipt": DocumentSchema(FusedReceipt, f"{root}/[local/]receipts/<shard>.json"),
            "fused-shared-receipt": DocumentSchema(Receipt[None], f"{root}/receipts/<part>.json"),
            "fused": DocumentSchema(FusedManifest, f"{root}/[local/]manifest.json"),
        }


def _check_unfinished(store: Store, location: Location, quick: bool) -> list[Finding]:
    from fusestore.fuse.folder import PLAN_FILE, FusedFolder, metadata_files
    from fusestore.fuse.resolve import find_inputs

    findings: list[Finding] = []
    plan = load_or_report(FusionPlan, location, PLAN_FILE, findings)
    if plan is None:
        return findings
    expected = metadata_files(plan)
    if plan.recipe.has_window_table:
        # The beginnings of windows follow from the documents' lengths, which the inputs have.
        with contextlib.suppress(FusestoreError):
            inputs = find_inputs(store, plan.recipe, plan=plan)
            expected |= FusedFolder(location, inputs).metadata
    metadata = {path: FileRecord.of(data) for path, data in expected.items()}
    findings += check_files(location, metadata, quick=quick)
    num_rows = 0
    for name in (location / "receipts").list():
        receipt = load_or_report(FusedReceipt, location, f"receipts/{name}", findings)
        if receipt is not None and receipt.fingerprint_digest == plan.digest:
            num_rows += receipt.stop - receipt.start
            findings += check_files(location, receipt.files, quick=quick)
    if num_rows == plan.num_tokens:
        findings.append(
            Finding(
                MANIFEST_FILE,
                "is missing although no shard is: run the same command again, or "
                "`fusestore fuse --materialize`",
            )
        )
    return findings
