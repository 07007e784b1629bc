"""What can be chosen when a model's distributions are captured."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fusestore.cache.manifest import DEFAULT_LOGPROB_STEP, Profile, check_profile
from fusestore.cache.rule import Rule, RuleName
from fusestore.errors import IncompatibleError
from fusestore.models.precision import DtypeSetting
from fusestore.store.codec import MAX_STEP, MIN_STEP
from fusestore.store.manifest import Frozen

BosPolicy = Literal["auto", "always", "never"]


class CaptureSettings(Frozen):
    """Choices for one capture; those up to `on_nan` change what is stored, the rest only how."""

    selection: RuleName = Field(
        default="top-k",
        description="top-k; top-p: of these as few as reach mass top_p; sampled: top_k draws.",
    )
    top_k: int = Field(default=32, ge=1, description="Most entries kept of each distribution.")
    top_p: float | None = Field(
        default=None, gt=0, lt=1, description="Mass that kept entries reach; needed for top-p."
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Of the draws; for sampled: 0 unless given."
    )
    profile: Profile = Field(
        default="compact",
        description="compact: smallest; lossless: exact float32; fast: not compressed.",
    )
    logprob_step: float | None = Field(
        default=None,
        ge=0,
        description="Grid of stored log-probabilities in nats, 1/16 if not given; with the profile "
        "fast, 0 keeps float32. The profile lossless and the selection sampled have none.",
    )
    dtype: DtypeSetting = Field(
        default="auto",
        description="The model's dtype: float32, bfloat16 or float16; auto: bfloat16 where the "
        "device has it in hardware, else float32, and that of a cache that was begun.",
    )
    bos: BosPolicy = Field(
        default="auto", description="Begin documents with BOS; auto: as the tokenizer."
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop", description="What to do about a document whose logits are not finite."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps, …")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Documents at a time; none: by a token budget, halved if it must.",
    )
    attention: str | None = Field(
        default=None, description="transformers' attention implementation."
    )
    revision: str | None = Field(default=None, description="Commit or tag of a hub model.")
    trust_remote_code: bool = Field(default=False, description="Run code the model folder carries.")
    rows_per_shard: int = Field(
        default=262_144, ge=1, description="Rows that are written as one unit."
    )
    rows_per_chunk: int = Field(
        default=2_048, ge=1, description="Rows that are decoded as one unit."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.rule
        if self.logprob_step and not MIN_STEP <= self.logprob_step <= MAX_STEP:
            raise ValueError(
                f"logprob_step is {self.logprob_step}; it must be from {MIN_STEP:g} to "
                f"{MAX_STEP:g} nats"
            )
        if self.selection != "sampled":
            check_profile(self.profile, self.grid)
        elif self.logprob_step is not None:
            raise ValueError("logprob_step means nothing with selection sampled: counts are exact")
        if self.rows_per_shard % self.rows_per_chunk:
            raise ValueError(
                f"rows_per_shard {self.rows_per_shard} is no multiple of "
                f"rows_per_chunk {self.rows_per_chunk}"
            )
        return self

    @property
    def rule(self) -> Rule:
        """Which entries are kept."""
        seed = 0 if self.seed is None and self.selection == "sampled" else self.seed
        return Rule(self.selection, self.top_k, self.top_p, seed)

    @property
    def grid(self) -> float | None:
        """The grid of log-probabilities in nats; None keeps float32, or counts where sampled."""
        if self.logprob_step is None:
            exact = self.profile == "lossless" or self.selection == "sampled"
            return None if exact else DEFAULT_LOGPROB_STEP
        return self.logprob_step or None


def wants_bos(policy: BosPolicy, tokenizer_adds_bos: bool, has_bos: bool) -> bool:
    """Whether documents begin with BOS under this policy.

    Raises:
        IncompatibleError: BOS is asked for, and the tokenizer has none.
    """
    if policy == "always" and not has_bos:
        raise IncompatibleError(
            "BOS was asked for (bos = always), but the tokenizer has no BOS token. "
            "Use auto or never."
        )
    return has_bos and (policy == "always" or (policy == "auto" and tokenizer_adds_bos))
