"""The manifest of a merged model, and the plan of a merge."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from fusestore.merge.settings import MergeSettings
from fusestore.models.precision import Precision
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.store.licenses import LicensedInput
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.store.receipts import FileRecords


def _is_empty(value: object) -> bool:
    return value == ()


class MergePlan(Manifest):
    """Everything that determines the merged weights.

    Attributes:
        settings: how weights were merged.
        model_digests: of the models' folders, in order.
        base_digest: of the base model's folder, for methods that need one.
        tokenizer_digest: of the tokenizer that all of them have.
    """

    settings: MergeSettings
    model_digests: tuple[str, ...]
    base_digest: str | None
    tokenizer_digest: str


class MergeEvaluation(Frozen):
    """The score of the merged model on a split.

    Attributes:
        corpus_digest: digest of the corpus.
        split: a split of the corpus.
        precision: format of the model's matrix products.
        metrics: by name, `bits_per_byte` among them.
    """

    corpus_digest: str
    split: str
    precision: Precision
    metrics: dict[str, float]


class MergeManifest(Manifest):
    """A merged model; written last, once.

    Attributes:
        merge: the plan.
        num_parameters: of the written tensors.
        evaluation: None if the merge was run without one.
        files: size and checksum of the model folder's files, by name.
        made_from: the merged models and their base, with their licenses; left out if nothing is
            known of them.
    """

    merge: MergePlan
    num_parameters: Count
    evaluation: MergeEvaluation | None
    files: FileRecords
    made_from: tuple[LicensedInput, ...] = Field(default=(), exclude_if=_is_empty)


class MergedModel(NamedTuple):
    """A merged model; `Model.open` and `from_pretrained` take its folder.

    Attributes:
        location: the model folder.
        manifest: its manifest.
    """

    location: Location
    manifest: MergeManifest

    def __repr__(self) -> str:
        manifest = self.manifest
        metrics = manifest.evaluation.metrics if manifest.evaluation is not None else {}
        scores = "".join(f", {key} {value:.4f}" for key, value in metrics.items())
        return (
            f"MergedModel({self.name!r} in {self.location.parent.parent}: "
            f"{manifest.merge.settings.method} merge of {len(manifest.merge.model_digests)} "
            f"models, {manifest.num_parameters:,} parameters{scores})"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import artifact_html

        return artifact_html(Store(self.location.parent.parent), "model", self.name)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.location.name
