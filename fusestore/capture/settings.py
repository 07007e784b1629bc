"""`CaptureSettings`: the settings of a capture; the options of `fusestore capture`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from fusestore.cache.manifest import DEFAULT_LOGPROB_STEP, Profile, check_profile
from fusestore.cache.rule import Rule, RuleName
from fusestore.errors import IncompatibleError
from fusestore.models.precision import DtypeSetting
from fusestore.store.codec import MAX_STEP, MIN_STEP
from fusestore.store.manifest import Frozen

BosPolicy = Literal["auto", "always", "never"]

_ROWS: dict[str, JsonValue] = {"panel": "Rows kept"}
_MODEL: dict[str, JsonValue] = {"panel": "Model"}
_WORK: dict[str, JsonValue] = {"panel": "Work"}


class CaptureSettings(Frozen):
    """Settings of one capture. Only those up to `on_nan` change the content of the rows."""

    selection: RuleName = Field(
        default="top-k",
        description="Rule that selects the kept entries: the most probable top_k; as few of these "
        "as reach the mass top_p; or top_k random draws.",
        json_schema_extra=_ROWS,
    )
    top_k: int = Field(
        default=32,
        ge=1,
        description="Most entries kept of each distribution; number of draws if sampled.",
        json_schema_extra={**_ROWS, "short": "-k"},
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Probability mass that the kept entries reach; required by top-p.",
        json_schema_extra=_ROWS,
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Seed of the random draws if sampled; 0 unless given.",
        json_schema_extra=_ROWS,
    )
    profile: Profile = Field(
        default="compact",
        description="Storage profile: compact is smallest, lossless keeps exact float32, fast is "
        "not compressed.",
        json_schema_extra=_ROWS,
    )
    logprob_step: float | None = Field(
        default=None,
        ge=0,
        description="Grid of stored log-probabilities in nats, 1/16 if not given; 0 with the "
        "profile fast keeps float32. The profile lossless and the selection sampled have no grid.",
        json_schema_extra=_ROWS,
    )
    dtype: DtypeSetting = Field(
        default="auto",
        description="Data type that the model runs in. auto is bfloat16 where the device has it in "
        "hardware, else float32; a cache that was begun keeps its own.",
        json_schema_extra=_MODEL,
    )
    bos: BosPolicy = Field(
        default="auto",
        description="Whether documents begin with the BOS token; auto does as the tokenizer does.",
        json_schema_extra=_MODEL,
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="What happens to a document with logits that are not finite: the capture "
        "stops, or the document is skipped.",
        json_schema_extra=_WORK,
    )
    device: str = Field(
        default="auto",
        description="Device that runs the model: auto, cpu, cuda, cuda:1, mps.",
        json_schema_extra=_WORK,
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Documents in one forward pass. By default a token budget decides, which is "
        "halved when memory runs out.",
        json_schema_extra=_WORK,
    )
    attention: str | None = Field(
        default=None,
        description="Attention implementation of transformers: sdpa, eager, flash_attention_2.",
        json_schema_extra=_MODEL,
    )
    revision: str | None = Field(
        default=None, description="Commit or tag of a hub model.", json_schema_extra=_MODEL
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run the Python code in the model's folder.",
        json_schema_extra=_MODEL,
    )
    rows_per_shard: int = Field(
        default=262_144,
        ge=1,
        description="Rows that are written as one unit.",
        json_schema_extra=_WORK,
    )
    rows_per_chunk: int = Field(
        default=2_048,
        ge=1,
        description="Rows that are decoded as one unit.",
        json_schema_extra=_WORK,
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
            raise ValueError(
                "logprob_step has no effect with selection sampled, which has exact counts"
            )
        if self.rows_per_shard % self.rows_per_chunk:
            raise ValueError(
                f"rows_per_shard {self.rows_per_shard} is no multiple of "
                f"rows_per_chunk {self.rows_per_chunk}"
            )
        return self

    @property
    def rule(self) -> Rule:
        """The rule that selects the kept entries."""
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
        IncompatibleError: BOS is required, and the tokenizer has none.
    """
    if policy == "always" and not has_bos:
        raise IncompatibleError(
            "bos is always, but the tokenizer has no BOS token. Use auto or never."
        )
    return has_bos and (policy == "always" or (policy == "auto" and tokenizer_adds_bos))
