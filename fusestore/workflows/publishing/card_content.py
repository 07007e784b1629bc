"""What a card says: collected from the manifests of a store, and a sample of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from fusestore.align.manifest import AlignmentManifest
from fusestore.cache.manifest import CacheManifest
from fusestore.cache.reader import open_cache
from fusestore.corpus.corpus import Corpus, open_corpus
from fusestore.corpus.manifest import CorpusManifest
from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.forecast.analysis import analyze_fusion
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.choices import LEARNED
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.resolve import find_inputs, with_names_now
from fusestore.merge.artifact import how_made
from fusestore.merge.manifest import MergeManifest
from fusestore.progress import Reporter
from fusestore.report.page.row_sample import sampled_rows
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.inventory import describe
from fusestore.store.layout import Store
from fusestore.store.licenses import License, LicensedInput, joint_license
from fusestore.store.lineage import Lineage
from fusestore.store.manifest import Manifest
from fusestore.store.registry import Artifact
from fusestore.train.manifest import TrainingManifest
from fusestore.version import __version__
from fusestore.workflows.publishing.card_figures import (
    AlignmentFigures,
    CacheFigures,
    CardContent,
    CorpusUsed,
    ForecastFigures,
    FusedFigures,
    ModelFigures,
    ModelUsed,
    PublishedArtifact,
)
from fusestore.workflows.publishing.settings import PublishSettings
from fusestore.workflows.store_report import FORECAST_TOKENS, sampled_fusion

SAMPLED_ROWS = 4_096
"""Rows of a cache on which the mass outside its entries is measured."""

_SEES = {
    "nothing": "",
    "text": " (sees the scores of the measured text)",
    "label": " (an oracle: sees the next token)",
}

_Content = TypeVar("_Content", bound=Manifest)
_Figures = TypeVar("_Figures")


def card_content(
    store: Store, paths: Sequence[str], settings: PublishSettings, reporter: Reporter
) -> CardContent:
    """Collect what a card says of artifacts and of all that they were made from.

    Args:
        store: holds the artifacts, and perhaps their inputs.
        paths: `kind/name` of the published artifacts, inputs first.
        settings: stated licenses, and whether to forecast.
        reporter: receives progress updates.

    Raises:
        CorruptionError: a manifest is damaged.
    """
    return _Collector(store, paths, settings, reporter).content()


class _Collector:
    def __init__(
        self, store: Store, paths: Sequence[str], settings: PublishSettings, reporter: Reporter
    ) -> None:
        self._store, self._settings, self._reporter = store, settings, reporter
        lineage = self._lineage = Lineage.of(store)
        by_path = {artifact.path: artifact for artifact in lineage.artifacts}
        self._published = [by_path[path] for path in paths]
        # All that they were made from, as far as the store holds it: each has a license.
        self._all = lineage.from_inputs(self._published, lambda _artifact, _found: True)
        self._left_out: list[str] = []

    def content(self) -> CardContent:
        used = self._models_used()
        corpora = self._corpora()
        parts = [(f"{each.role} {each.name}", each.license) for each in used]
        parts += [(f"corpus/{each.name}", each.license) for each in corpora if each.published]
        parts = [(name, found) for name, found in parts if not self._is_made_here(name)]
        return CardContent(
            artifacts=tuple(map(self._artifact, self._published)),
            models_used=tuple(used),
            corpora=tuple(corpora),
            caches=tuple(self._each("cache", CacheManifest, self._cache)),
            alignments=tuple(self._each("alignment", AlignmentManifest, self._alignment)),
            fused=tuple(self._each("fused", FusedManifest, _fused)),
            models=tuple(
                _model(each, each.kind.load(each.location))
                for each in self._published
                if each.kind.name == "model"
            ),
            forecasts=tuple(
                figures
                for figures in self._each("fused", FusedManifest, self._forecast)
                if figures is not None
            )
            if self._settings.forecast
            else (),
            license=joint_license(found for _, found in parts),
            unknown_licenses=tuple(name for name, found in parts if found is None),
            language=self._settings.language,
            left_out=tuple(self._left_out),
            fusestore_version=__version__,
        )

    def _is_made_here(self, name: str) -> bool:
        """A merged model of this store has the licenses of what it was made from, listed too."""
        role, _, model = name.partition(" ")
        return role == "merged" and any(
            each.kind.name == "model" and each.name == model for each in self._all
        )

    def _artifact(self, artifact: Artifact) -> PublishedArtifact:
        manifest = artifact.manifest or {}
        return PublishedArtifact(
            artifact=artifact.path,
            description=describe(artifact),
            num_bytes=sum(artifact.location.sizes().values()),
            manifest_digest=str(manifest["checksum"]),
            made_from=tuple(
                found.artifact.path if found.artifact else f"{found.input.kind} (not in the store)"
                for found in self._lineage.inputs(artifact)
            ),
        )

    def _models_used(self) -> list[ModelUsed]:
        found: dict[tuple[str, str], ModelUsed] = {}
        # A model that was captured and trained or merged too has one license.
        captured: dict[str, ModelUsed] = {}
        for artifact in self._all:
            if artifact.kind.name == "cache":
                manifest = CacheManifest.load(artifact.location / MANIFEST_FILE)
                used = self._teacher(artifact.name, manifest)
                found[used.role, used.digest] = used
                captured.setdefault(manifest.fingerprint.model.spec_digest, used)
        for artifact in self._all:
            if artifact.kind.name not in ("fused", "model") or not artifact.complete:
                continue
            content = artifact.manifest or {}
            for made_from in _made_from(artifact.kind.load(artifact.location)):
                key = (made_from.role, made_from.digest)
                found.setdefault(key, self._other(made_from, captured.get(made_from.digest)))
            digests = [
                ("base", content.get("plan", {}).get("base_model_digest")),
                *(("merged", each) for each in content.get("merge", {}).get("model_digests", ())),
            ]
            for role, digest in digests:
                if digest is not None and (role, str(digest)) not in found:
                    unnamed = LicensedInput(
                        role="base" if role == "base" else "merged",
                        name=str(digest)[:16],
                        digest=str(digest),
                        model_spec=None,
                        license=None,
                    )
                    found[role, str(digest)] = self._other(unnamed, captured.get(str(digest)))
        return list(found.values())

    def _teacher(self, name: str, manifest: CacheManifest) -> ModelUsed:
        fingerprint = manifest.fingerprint
        model, revision = _spec(manifest.model_spec)
        return ModelUsed(
            role="teacher",
            name=name,
            model=model,
            architecture=fingerprint.model.architecture,
            revision=revision,
            license=self._stated(f"cache/{name}") or manifest.license,
            tokenizer_digest=fingerprint.tokenizer_digest,
            tokenizer_length=fingerprint.tokenizer_length,
            digest=manifest.content_digest,
        )

    def _other(self, made_from: LicensedInput, captured: ModelUsed | None) -> ModelUsed:
        """A model that a manifest names; `captured` is its entry as a teacher, if it is one."""
        if captured is not None and made_from.role != "teacher":
            return captured.model_copy(update={"role": made_from.role, "digest": made_from.digest})
        model, revision = _spec(made_from.model_spec)
        kind = "cache" if made_from.role == "teacher" else "model"
        return ModelUsed(
            role=made_from.role,
            name=made_from.name,
            model=model,
            architecture=None,
            revision=revision,
            license=self._stated(f"{kind}/{made_from.name}") or made_from.license,
            tokenizer_digest=None,
            tokenizer_length=None,
            digest=made_from.digest,
        )

    def _stated(self, path: str) -> License | None:
        return License.of(self._settings.license.get(path), "user")

    def _corpora(self) -> list[CorpusUsed]:
        published = {artifact.path for artifact in self._published}
        found: dict[str, CorpusUsed] = {}
        for artifact in self._all:
            if artifact.kind.name == "corpus":
                manifest = CorpusManifest.load(artifact.location / MANIFEST_FILE)
                recorded = Corpus(artifact.name, artifact.location, manifest).license
                found[manifest.digest] = CorpusUsed(
                    name=artifact.name,
                    digest=manifest.digest,
                    license=self._stated(artifact.path) or recorded,
                    published=artifact.path in published,
                    num_documents=manifest.num_documents,
                    num_bytes=manifest.num_bytes,
                    splits={name: size.num_documents for name, size in manifest.splits.items()},
                )
        for artifact in self._all:
            for each in artifact.inputs:
                if each.kind == "corpus" and each.digest not in found:
                    found[each.digest] = CorpusUsed(
                        name=each.name or each.digest[:16],
                        digest=each.digest,
                        license=self._stated(f"corpus/{each.name}"),
                        published=False,
                        num_documents=None,
                        num_bytes=None,
                        splits={},
                    )
        return list(found.values())

    def _each(
        self,
        kind: str,
        content: type[_Content],
        make: Callable[[Artifact, _Content], _Figures],
    ) -> list[_Figures]:
        return [
            make(artifact, content.load(artifact.location / MANIFEST_FILE))
            for artifact in self._published
            if artifact.kind.name == kind
        ]

    def _cache(self, artifact: Artifact, manifest: CacheManifest) -> CacheFigures:
        fingerprint = manifest.fingerprint
        outside, num_rows = None, 0
        try:
            if fingerprint.known_tail:
                rows = sampled_rows(open_cache(self._store, artifact.name), SAMPLED_ROWS)
                num_rows = len(rows)
                if num_rows:
                    outside = float(np.exp(rows.tail.astype(np.float64)).mean())
        except FusestoreError as error:
            self._left_out.append(f"mass outside the entries of {artifact.path}: {error}")
        return CacheFigures(
            name=artifact.name,
            rule=fingerprint.selection,
            top_k=fingerprint.top_k,
            top_p=fingerprint.top_p,
            profile=fingerprint.profile,
            logprob_step=fingerprint.logprob_step,
            engine=fingerprint.engine,
            dtype=fingerprint.dtype,
            num_tokens=fingerprint.num_tokens,
            num_rows=fingerprint.num_rows,
            bytes_per_token=manifest.num_bytes / max(1, fingerprint.num_rows),
            bits_per_byte=_scores(manifest.scores),
            outside=outside,
            sampled_rows=num_rows,
            audit=manifest.audit,
        )

    def _alignment(self, artifact: Artifact, manifest: AlignmentManifest) -> AlignmentFigures:
        source = next(
            (
                found.artifact.name if found.artifact else found.input.digest[:16]
                for found in self._lineage.inputs(artifact)
                if found.input.kind == "cache"
            ),
            "",
        )
        return AlignmentFigures(
            name=artifact.name,
            source=source,
            method=manifest.fingerprint.method,
            num_tokens=manifest.fingerprint.num_target_tokens,
            coverage=manifest.coverage,
        )

    def _forecast(self, artifact: Artifact, manifest: FusedManifest) -> ForecastFigures | None:
        try:
            recipe = with_names_now(self._store, manifest.plan)
            splits = open_corpus(self._store, str(recipe.corpus)).manifest.splits
            if ForecastSettings().split in splits:
                recipe = recipe.model_copy(update={"split": ForecastSettings().split})
            plan = manifest.plan.model_copy(update={"recipe": recipe})
            fusion = find_inputs(self._store, recipe, plan=plan, save_fit=False)
            if (
                fusion.fitted is not None
                and fusion.fitted.manifest.fingerprint.split == recipe.split
            ):
                self._left_out.append(
                    f"forecast of {artifact.path}: its strategy was fitted to the text that would "
                    "be measured"
                )
                return None
            names = tuple(name for name in ForecastSettings().strategies if name not in LEARNED)
            sampled = sampled_fusion(fusion, FORECAST_TOKENS)
            with self._reporter.stage(f"Analyzing {artifact.name}", "tokens") as progress:
                forecast = analyze_fusion(sampled, strategies=names, progress=progress)
        except FusestoreError as error:
            self._left_out.append(f"forecast of {artifact.path}: {error}")
            return None
        mixtures: dict[str, float | None] = {}
        for mixture in forecast.strategies:
            by = f" by {mixture.granularity}" if mixture.granularity else ""
            mixtures[f"{mixture.strategy}{by}{_SEES[mixture.sees]}"] = mixture.common_bits_per_byte
        return ForecastFigures(
            fused=artifact.name,
            split=recipe.split,
            num_tokens=forecast.num_predicted,
            sources={each.cache: each.alone.common_bits_per_byte for each in forecast.sources},
            mixtures=mixtures,
            verdict=str(forecast.verdict),
        )


def _made_from(manifest: Manifest) -> tuple[LicensedInput, ...]:
    """What a manifest says of models and licenses; nothing, for one of another kind."""
    if isinstance(manifest, FusedManifest | TrainingManifest | MergeManifest):
        return manifest.made_from
    return ()


def _spec(model_spec: str | None) -> tuple[str | None, str | None]:
    """The name and the commit of a portable spec."""
    if model_spec is None:
        return None, None
    name, _, revision = model_spec.partition("@")
    return name, revision or None


def _scores(scores: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for key, num_bytes in scores.items():
        split, separator, _ = key.rpartition(".predicted_bytes")
        if separator and num_bytes > 0:
            found[split] = float(scores[f"{split}.nats"] / np.log(2) / num_bytes)
    return found


def _fused(artifact: Artifact, manifest: FusedManifest) -> FusedFigures:
    recipe = manifest.plan.recipe
    total = max(1, manifest.num_tokens)
    return FusedFigures(
        name=artifact.name,
        strategy=recipe.strategy,
        split=recipe.split,
        top_k=recipe.top_k,
        window_length=recipe.window_length,
        num_tokens=manifest.num_tokens,
        num_windows=manifest.num_windows,
        bytes_per_token=manifest.num_bytes / total,
        kinds={name: count / total for name, count in manifest.kinds.items() if count},
        sources=manifest.sources,
    )


def _model(artifact: Artifact, manifest: Manifest) -> ModelFigures:
    how = how_made(artifact.manifest or {})
    if isinstance(manifest, MergeManifest):
        metrics = manifest.evaluation.metrics if manifest.evaluation is not None else {}
        return ModelFigures(
            name=artifact.name,
            how=how,
            merged=True,
            adapter=False,
            num_tokens=None,
            bits_per_byte_before=None,
            bits_per_byte=metrics.get("bits_per_byte"),
        )
    if not isinstance(manifest, TrainingManifest):
        raise InvalidInputError(f"{artifact.path} was neither trained nor merged.")
    before = [point.metrics for point in manifest.evaluations if point.step == 0]
    lora = manifest.plan.settings.lora
    return ModelFigures(
        name=artifact.name,
        how=how,
        merged=False,
        adapter=lora is not None and lora.adapter_only,
        num_tokens=manifest.num_tokens,
        bits_per_byte_before=before[0].get("bits_per_byte") if before else None,
        bits_per_byte=manifest.result_metrics.get("bits_per_byte"),
    )
