"""`TrainSettings`: what a training run does; `[train]`, and the options of `fusestore train`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from fusestore.losses.divergence_registry import check_divergence
from fusestore.losses.objective import (
    DEFAULT_LM_WEIGHT,
    DEFAULT_TAIL,
    FusionObjective,
    TailMode,
)
from fusestore.models.precision import PrecisionSetting
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen, is_stored
from fusestore.store.presets import SettingsWithPresets

_OBJECTIVE: dict[str, JsonValue] = {"panel": "Objective"}
_OPTIMIZER: dict[str, JsonValue] = {"panel": "Optimizer"}
_SCHEDULE: dict[str, JsonValue] = {"panel": "Schedule"}
_BATCHES: dict[str, JsonValue] = {"panel": "Batches"}
_LORA: dict[str, JsonValue] = {"panel": "LoRA"}
_EVALUATION: dict[str, JsonValue] = {"panel": "Evaluation"}
_MEMORY: dict[str, JsonValue] = {"panel": "Precision and memory"}


class LoraSettings(Frozen):
    """Low-rank adaptation: the base weights are frozen, and low-rank updates are trained."""

    rank: int = Field(
        ge=1,
        description="Rank of the update of each weight matrix. Trains low-rank updates (LoRA) "
        "instead of all weights; needs `fusestore[lora]`.",
        json_schema_extra=_LORA,
    )
    alpha: float = Field(
        default=32.0,
        gt=0,
        description="Factor of the LoRA updates: they are multiplied by alpha / rank.",
        json_schema_extra=_LORA,
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout probability of the input of each LoRA update, in training.",
        json_schema_extra=_LORA,
    )
    target_modules: Listed[str, str] = Field(
        default=listed(),
        description="Names, or ends of names such as q_proj, of the layers that LoRA adapts. By "
        "default every linear layer except the output head.",
        json_schema_extra={**_LORA, "metavar": "NAME ..."},
    )
    adapter_only: bool = Field(
        default=False,
        description="Publish the LoRA adapter alone, for PeftModel.from_pretrained(base, folder), "
        "instead of a model with the updates added to its weights.",
        json_schema_extra=_LORA,
    )


class TrainSettings(SettingsWithPresets):
    """What a training run does, except for its model, its data and its folders."""

    PRESETS: ClassVar = {
        "fusellm": {
            "lm_weight": 0.9,
            "tail": "renormalize",
            "learning_rate": 1e-5,
            "warmup": 0.008,
            "schedule": "cosine",
        }
    }

    objective: Literal["fuse", "kd", "clm"] = Field(
        default="fuse",
        description="What is learned from. fuse: text and fused distributions. kd: the "
        "distributions alone. clm: the text alone. All three read the same tokens in the same "
        "order.",
        json_schema_extra=_OBJECTIVE,
    )
    lm_weight: float = Field(
        default=DEFAULT_LM_WEIGHT,
        ge=0,
        le=1,
        description="Weight λ of the text's next tokens in `objective` fuse; the fused "
        "distributions have the weight 1 − λ.",
        json_schema_extra=_OBJECTIVE,
    )
    final_lm_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Final value of `lm_weight`, reached linearly. By default the weight is "
        "constant; 1 is FuseLLM's `hard_and_decay`.",
        json_schema_extra=_OBJECTIVE,
    )
    divergence: str = Field(
        default="cross_entropy",
        description="Divergence of the fused term: cross_entropy, forward_kl, reverse_kl, "
        "jensen_shannon, or one that a plugin registers.",
        json_schema_extra={**_OBJECTIVE, "metavar": "NAME"},
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="Temperature T of both distributions of the fused term.",
        json_schema_extra=_OBJECTIVE,
    )
    temperature_squared: bool = Field(
        default=True,
        description="Multiply the fused term by T², which keeps the size of its gradient.",
        json_schema_extra=_OBJECTIVE,
    )
    tail: TailMode = Field(
        default=DEFAULT_TAIL,
        description="How the mass outside the kept entries is treated. renormalize: scale the "
        "entries to sum to 1. ghost: compare it with the model's mass outside the kept ids.",
        json_schema_extra=_OBJECTIVE,
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Train low-rank updates instead of all weights; a table of LoRA settings.",
        json_schema_extra=_LORA,
    )
    learning_rate: float = Field(
        default=2e-5,
        gt=0,
        description="Peak learning rate.",
        json_schema_extra={**_OPTIMIZER, "names": ["--learning-rate", "--lr"]},
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        description="Weight decay of AdamW, on weight matrices only.",
        json_schema_extra=_OPTIMIZER,
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95),
        description="Decay rates of AdamW's running means of the gradient and of its square.",
        json_schema_extra={**_OPTIMIZER, "metavar": "BETA1 BETA2"},
    )
    eps: float = Field(
        default=1e-8,
        gt=0,
        description="Term that AdamW adds to the denominator of its update.",
        json_schema_extra=_OPTIMIZER,
    )
    max_grad_norm: float = Field(
        default=1.0,
        ge=0,
        description="Gradient norm above which gradients are scaled down to it; 0: no clipping.",
        json_schema_extra=_OPTIMIZER,
    )
    loss_spike: float = Field(
        default=3.0,
        ge=0,
        description="Stop before the update if the loss of a step is this many nats above the "
        "median of the 20 steps before; 0: never.",
        json_schema_extra=_OPTIMIZER,
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine",
        description="Shape of the learning rate after the warm-up.",
        json_schema_extra=_SCHEDULE,
    )
    warmup: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of all steps in which the learning rate rises linearly to its peak.",
        json_schema_extra=_SCHEDULE,
    )
    final_learning_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Learning rate at the end of the schedule, as a share of the peak.",
        json_schema_extra=_SCHEDULE,
    )
    epochs: int = Field(
        default=1,
        ge=1,
        description="Passes over the dataset; has no effect with `max_steps`.",
        json_schema_extra=_SCHEDULE,
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of optimizer steps, in place of `epochs`.",
        json_schema_extra=_SCHEDULE,
    )
    batch_size: int = Field(
        default=4,
        ge=1,
        description="Windows per process in one forward pass.",
        json_schema_extra=_BATCHES,
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        description="Forward passes per optimizer step.",
        json_schema_extra=_BATCHES,
    )
    attend_within: Literal["auto", "window", "document"] = Field(
        default="auto",
        description="How far attention reaches. window: over all documents of a window. document: "
        "only within each document (document masking). auto: document where windows hold whole "
        "documents (packing whole) and the model supports it, else window.",
        json_schema_extra=_BATCHES,
    )
    num_workers: int = Field(
        default=0,
        ge=0,
        description="DataLoader processes that prefetch windows.",
        json_schema_extra=_BATCHES,
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of the order of windows, of dropout and of LoRA's initial weights.",
        json_schema_extra=_BATCHES,
    )
    eval_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between evaluations. By default the model is evaluated before the "
        "first step and at the end.",
        json_schema_extra=_EVALUATION,
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints. By default a checkpoint is written only when the "
        "run is interrupted.",
        json_schema_extra={"panel": "Checkpoints and logs"},
    )
    result: Literal["last", "best"] = Field(
        default="last",
        description="Weights that are published. last: those of the last step. best: those of the "
        "evaluation with the fewest bits per byte, which may be the one before the first step.",
        json_schema_extra=_EVALUATION,
    )
    precision: PrecisionSetting = Field(
        default="auto",
        description="Format of matrix products, with float32 weights. auto: bfloat16 where the "
        "device has it in hardware, else float32. A resumed run keeps its precision.",
        json_schema_extra=_MEMORY,
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Dtype of the published weights.",
        json_schema_extra=_MEMORY,
    )
    attn_implementation: str | None = Field(
        default=None,
        description="Attention implementation of transformers, such as sdpa, eager or "
        "flash_attention_2. By default the model's own.",
        json_schema_extra={**_MEMORY, "metavar": "NAME"},
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time.",
        json_schema_extra=_MEMORY,
    )
    logits: Literal["auto", "whole", "chunked"] = Field(
        default="auto",
        description="How logits are computed. whole: for the whole batch at once. chunked: for one "
        "chunk of tokens at a time. auto: chunked above 2^28 logits if the model's head allows it.",
        json_schema_extra=_MEMORY,
    )

    @field_validator("divergence")
    @classmethod
    def _divergence_is_registered(cls, name: str, info: ValidationInfo) -> str:
        # A manifest can be read without the plugin that its run used.
        if not is_stored(info):
            check_divergence(name)
        return name

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; each must lie in [0, 1).")
        return self

    @property
    def lm_weights(self) -> tuple[float, float]:
        """λ of the first step, and the value that a step after the last would have."""
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
        """The objective of a step with this λ."""
        return FusionObjective(
            lm_weight=lm_weight,
            divergence=self.divergence,
            temperature=self.temperature,
            tail=self.tail,
            temperature_squared=self.temperature_squared,
        )
