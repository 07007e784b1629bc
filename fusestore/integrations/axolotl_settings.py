"""The section `fusestore` of an axolotl configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fusestore.losses.objective import DEFAULT_LM_WEIGHT, DEFAULT_TAIL, FusionObjective, TailMode


class FusedTraining(BaseModel):
    """What is trained on, and the objective."""

    model_config = ConfigDict(extra="forbid")

    store: str = Field(description="Folder or URL of the store.")
    fused: str = Field(description="Name of the fused dataset to train on.")
    evaluate: str | None = Field(
        default=None, description="Name of the fused dataset for evaluations."
    )
    stream: bool = Field(
        default=False,
        description="Whether to read the training data shard by shard instead of copying it first.",
    )
    lm_weight: float = Field(
        default=DEFAULT_LM_WEIGHT, description="Weight λ of the text's own next tokens."
    )
    temperature: float = Field(default=1.0, description="Temperature T of both distributions.")
    tail: TailMode = Field(
        default=DEFAULT_TAIL, description="How the mass outside the kept entries is treated."
    )
    divergence: str = Field(
        default="cross_entropy", description="How the distributions are compared."
    )
    document_masking: bool = Field(
        default=False, description="Whether attention stays within each document of a window."
    )

    @property
    def objective(self) -> FusionObjective:
        """What is minimized."""
        return FusionObjective(self.lm_weight, self.temperature, self.tail, self.divergence)


class FusestoreArgs(BaseModel):
    """What the plugin adds to axolotl's configuration."""

    fusestore: FusedTraining
