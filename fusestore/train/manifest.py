"""The manifest of a trained model, and the plan of a training run."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import Field, model_validator

from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.store.licenses import LicensedInput
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.store.receipts import FileRecords
from fusestore.train.settings import TrainSettings


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return value == ()


class LossPoint(Frozen):
    """One optimizer step: losses in nats, averaged over its batches (before the update).

    Attributes:
        step: counted from 1.
        loss: the minimized loss.
        lm: cross-entropy of the text's next tokens.
        fused: the fused term, by the settings' divergence, temperature and tail; None where λ is 1.
        lm_weight: λ: `loss` is λ · `lm` + (1 − λ) · `fused`.
        learning_rate: of this step.
        grad_norm: before clipping.
    """

    step: Count
    loss: float
    lm: float
    fused: float | None
    lm_weight: float
    learning_rate: float
    grad_norm: float


class EvaluationPoint(Frozen):
    """Metrics by name after `step` optimizer steps."""

    step: Count
    metrics: dict[str, float]


class TrainingPlan(Manifest):
    """Everything that determines the trained weights on one kind of machine.

    Attributes:
        dataset_digest: of the fused dataset's plan.
        stream_order: what the order of a stream's windows depends on (seed, `shuffle_span`, …);
            left out where it is the order of the map-style dataset at `settings.seed`.
        base_model_digest: of the folder that training started from.
        settings: of the run; precision and attend_within are settled, never `auto`.
        world_size: processes that the run began with. Others may have resumed it, with another
            `batch_size` and `gradient_accumulation`; see `windows_per_step`.
        total_steps: optimizer steps.
    """

    dataset_digest: str
    stream_order: dict[str, int | list[int | None] | None] | None = Field(
        default=None, exclude_if=_is_none
    )
    base_model_digest: str
    settings: TrainSettings
    world_size: Count
    total_steps: Count

    @model_validator(mode="after")
    def _choices_are_settled(self) -> Self:
        for name in ("precision", "attend_within"):
            if getattr(self.settings, name) == "auto":
                raise ValueError(f"the {name} of a plan is settled before it is made; found auto")
        return self

    @property
    def windows_per_step(self) -> int:
        """Windows of an optimizer step, over all processes and batches."""
        settings = self.settings
        return settings.batch_size * settings.gradient_accumulation * self.world_size

    def same_result(self, other: TrainingPlan) -> bool:
        """Whether both plans end with the same model, if no loss spike stops them.

        It is the same except for rounding, and for the random numbers of dropout, where the
        windows of a step are divided in another way.
        """
        if self.windows_per_step != other.windows_per_step:
            return False

        def without_guard(plan: TrainingPlan) -> TrainingPlan:
            changes = {"loss_spike": 0.0, "batch_size": 1, "gradient_accumulation": 1}
            settings = plan.settings.model_copy(update=changes)
            return plan.model_copy(update={"settings": settings, "world_size": 1})

        return without_guard(self) == without_guard(other)


class TrainingManifest(Manifest):
    """A finished training run; written last, once.

    Attributes:
        plan: what was run.
        result_step: the step of the published weights: the last, or that of the best evaluation
            where `settings.result` is `best`.
        num_tokens: target tokens that went through the model, over all epochs and processes.
        loss_curve: one point per optimizer step.
        evaluations: by step, from that of the starting model to that of the last step.
        files: size and checksum of the model folder's files, by name.
        made_from: the model that training started from and those whose distributions it learned,
            with their licenses; left out if nothing is known of them.
    """

    plan: TrainingPlan
    result_step: Count
    num_tokens: Count
    loss_curve: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]
    files: FileRecords
    made_from: tuple[LicensedInput, ...] = Field(default=(), exclude_if=_is_empty)

    @property
    def result_metrics(self) -> dict[str, float]:
        """Metrics of the published model; empty without evaluations."""
        points = {point.step: point.metrics for point in self.evaluations}
        return points.get(self.result_step, {})


class TrainedModel(NamedTuple):
    """A trained model; `Model.open` and `from_pretrained` take its folder.

    Attributes:
        location: the model folder.
        manifest: its manifest.
    """

    location: Location
    manifest: TrainingManifest

    def __repr__(self) -> str:
        manifest, plan = self.manifest, self.manifest.plan
        scores = "".join(f", {key} {value:.4f}" for key, value in manifest.result_metrics.items())
        return (
            f"TrainedModel({self.name!r} in {self.location.parent.parent}: "
            f"{plan.settings.objective}, {manifest.num_tokens:,} tokens trained, weights of step "
            f"{manifest.result_step:,} of {plan.total_steps:,}{scores})"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import artifact_html

        return artifact_html(Store(self.location.parent.parent), "model", self.name)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.location.name
