"""What a training run is told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fusestore.losses.objective import Divergence, FusionObjective, TailMode
from fusestore.models.precision import PrecisionSetting
from fusestore.store.manifest import Frozen


class LoraSettings(Frozen):
    """Low-rank adaptation: the model's weights stay, and updates of low rank are trained.

    Attributes:
        rank: of the update of each weight matrix.
        alpha: the update is multiplied by alpha / rank.
        dropout: of what the update is applied to, while training.
        target_modules: names of the layers, or the ends of them (`q_proj`); empty: every linear
            layer but the output head.
        merge: publish the model with the updates added to its weights; otherwise the adapter
            alone, for `PeftModel.from_pretrained(base, folder)`.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()
    merge: bool = True


class TrainSettings(Frozen):
    """Everything about a run but its model, its data and where things lie.

    Attributes:
        objective: `fuse` (text and fused distributions), `kd` (the distributions alone: λ is 0)
            or `clm` (the text alone: λ is 1, and the settings of the fused term have no effect).
            All three take the same tokens in the same order.
        lm_weight: λ, the weight of the text's own next tokens against the fused distributions;
            of `fuse` only.
        final_lm_weight: where λ goes in a straight line, to be reached by the step after the last;
            None: it stays. FuseLLM's code calls 1 `hard_and_decay`: the fused term fades.
        divergence: what the fused term measures; see docs/losses.md.
        temperature: T, applied to both distributions of the fused term.
        temperature_squared: whether the fused term is multiplied by T².
        tail: the mass that sparse rows do not keep: `renormalize` drops it, `ghost` holds it
            against the model's mass outside the kept ids.
        logits: `whole` makes a batch's logits at once, `pieces` never more than one piece of
            them; `auto` takes pieces where whole would be more than 2^28 values and the model's
            logits are a plain product, soft-capped at most. Both are equal but for rounding.
        lora: train low-rank updates (needs the extra `lora`); None: all weights.
        learning_rate: its peak.
        schedule: what follows the warm-up: `cosine` or `linear` down to
            `final_learning_rate`, or `constant`.
        warmup: share of all steps in which the learning rate rises.
        final_learning_rate: as a share of the peak.
        weight_decay: AdamW's, on matrices only (not on norms and biases).
        betas: AdamW's.
        max_grad_norm: gradients are scaled down to this norm; None: never.
        loss_spike: a step whose loss lies more than this many nats above the median of the (at
            most 20) steps before it ends the run before it changes a weight. None: none does.
        batch_size: windows per process in one forward pass.
        gradient_accumulation: forward passes per optimizer step.
        epochs: passes over the dataset; has no effect with `max_steps`.
        max_steps: optimizer steps, instead of `epochs`.
        seed: of the windows' order and of dropout.
        precision: `bfloat16` runs the model under autocast on float32 weights; `float32` does not;
            `auto` is bfloat16 where the device has it in hardware, else float32. A run that was
            begun keeps what `auto` was settled as.
        save_dtype: of the weights in the finished model's folder.
        gradient_checkpointing: recompute activations in the backward pass.
        attn_implementation: transformers' name (`sdpa`, `eager`, …); None: the model's default.
        attend_within: `window` lets a position see all of its window before it, `document` only
            its own document, read from position 0 as if it were alone.
        num_workers: DataLoader processes that read windows ahead.
        result: which weights are published: those of the `last` step, or the `best`, of the
            evaluation with the fewest held-out bits per byte (the model that training started
            from, if none did better).
        eval_every: steps between evaluations; None: before the first step and at the end only.
        checkpoint_every: steps between checkpoints, and one at the end, until the model is
            published; None: only when interrupted.
    """

    objective: Literal["fuse", "kd", "clm"] = "fuse"
    lm_weight: float = Field(default=0.9, ge=0, le=1)
    final_lm_weight: float | None = Field(default=None, ge=0, le=1)
    divergence: Divergence = "cross_entropy"
    temperature: float = Field(default=1.0, gt=0)
    temperature_squared: bool = True
    tail: TailMode = "renormalize"
    logits: Literal["auto", "whole", "pieces"] = "auto"
    lora: LoraSettings | None = None
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, le=1)
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    loss_spike: float | None = Field(default=3.0, gt=0)
    batch_size: int = Field(default=4, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: PrecisionSetting = "auto"
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    attend_within: Literal["window", "document"] = "window"
    num_workers: int = Field(default=0, ge=0)
    result: Literal["last", "best"] = "last"
    eval_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; each must lie in [0, 1).")
        return self

    @property
    def lm_weights(self) -> tuple[float, float]:
        """λ of the first step, and where it goes."""
        if self.objective == "clm":
            return 1.0, 1.0
        if self.objective == "kd":
            return 0.0, 0.0
        final = self.lm_weight if self.final_lm_weight is None else self.final_lm_weight
        return self.lm_weight, final

    @property
    def fuses(self) -> bool:
        """Whether fused distributions take part in the loss."""
        return min(self.lm_weights) < 1.0

    def fusion_objective(self, lm_weight: float) -> FusionObjective:
        """What is minimised while λ is `lm_weight`."""
        return FusionObjective(
            lm_weight=lm_weight,
            divergence=self.divergence,
            temperature=self.temperature,
            tail=self.tail,
            temperature_squared=self.temperature_squared,
        )
