"""What a merged model's `manifest.json` holds."""

from __future__ import annotations

from fusestore.merge.settings import MergeSettings
from fusestore.models.precision import Precision
from fusestore.store.manifest import Frozen, Manifest
from fusestore.store.receipts import FileRecord


class MergePlan(Manifest):
    """Everything that determines the merged weights.

    Attributes:
        settings: how they were merged.
        model_digests: of the models' folders, in order.
        base_digest: of the base model's folder, for task_arithmetic and ties.
        tokenizer_digest: of the tokenizer that all of them have.
    """

    settings: MergeSettings
    model_digests: tuple[str, ...]
    base_digest: str | None
    tokenizer_digest: str


class MergeEvaluation(Frozen):
    """How well the merged model predicts a split.

    Attributes:
        corpus_digest: of the corpus.
        split: its split.
        precision: what the model computed in.
        metrics: by name, `bits_per_byte` among them.
    """

    corpus_digest: str
    split: str
    precision: Precision
    metrics: dict[str, float]


class MergeManifest(Manifest):
    """A merged model; written last, once.

    Attributes:
        merge: what it was made from and how.
        num_parameters: of the written tensors.
        evaluation: None where none was asked for.
        files: what each file of the model folder holds, by name.
    """

    merge: MergePlan
    num_parameters: int
    evaluation: MergeEvaluation | None
    files: dict[str, FileRecord]
