"""`CaptureSettings`: what a capture keeps and how it runs; the options of `fusestore capture`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from fusestore.cache.manifest import (
    DEFAULT_ENGINE,
    DEFAULT_LOGPROB_STEP,
    Only,
    Profile,
    check_profile,
)
from fusestore.cache.rule import Rule, RuleName
from fusestore.capture.conflicts import model_setting_problems
from fusestore.errors import IncompatibleError
from fusestore.models.placement import DeviceMap, Placement, parse_memory
from fusestore.models.precision import DtypeSetting
from fusestore.models.quantization import Quantization
from fusestore.store.codec import MAX_STEP, MIN_STEP
from fusestore.store.listed import Listed, listed
from fusestore.store.presets import SettingsWithPresets

AuditBy = Literal["auto", "transformers", "engine", "off"]
BosPolicy = Literal["auto", "always", "never"]


_ROWS: dict[str, JsonValue] = {"panel": "Kept entries"}
_MODEL: dict[str, JsonValue] = {"panel": "Model"}
_ENGINE: dict[str, JsonValue] = {"panel": "Engine"}
_WORK: dict[str, JsonValue] = {"panel": "Execution"}
_LARGE: dict[str, JsonValue] = {"panel": "Models larger than one device"}


class CaptureSettings(SettingsWithPresets):
    """What a capture keeps and how it runs. Fields up to `served_model` change stored numbers."""

    PRESETS: ClassVar = {"fusellm": {"top_k": 10}}

    only: Only = Field(
        default="all",
        description="Tokens whose rows are kept. supervised: of a corpus of conversations only "
        "rows that predict text which is trained on; fusing needs no other.",
        json_schema_extra=_ROWS,
    )
    selection: RuleName = Field(
        default="top-k",
        description="Which entries are kept. top-k: the `top_k` most probable. top-p: as few of "
        "these as reach the mass `top_p`. sampled: `top_k` random draws.",
        json_schema_extra=_ROWS,
    )
    top_k: int = Field(
        default=32,
        ge=1,
        description="Maximum number of entries kept of each distribution; with `selection` "
        "sampled, the number of draws.",
        json_schema_extra={**_ROWS, "short": "-k"},
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Probability mass that the kept entries reach. `selection` top-p needs it.",
        json_schema_extra=_ROWS,
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Seed of the random draws of `selection` sampled. By default 0.",
        json_schema_extra=_ROWS,
    )
    profile: Profile = Field(
        default="compact",
        description="How rows are stored. compact: rounded and smallest. lossless: exact float32, "
        "compressed. fast: not compressed.",
        json_schema_extra=_ROWS,
    )
    logprob_step: float | None = Field(
        default=None,
        ge=0,
        description="Step in nats to which log-probabilities are rounded, by default 1/16. 0 with "
        "`profile` fast stores exact float32. `profile` lossless and `selection` sampled round "
        "nothing and take no step.",
        json_schema_extra=_ROWS,
    )
    dtype: DtypeSetting = Field(
        default="auto",
        description="Data type in which the model runs. auto: bfloat16 where the device has it in "
        "hardware, else float32. A capture that is continued keeps its dtype.",
        json_schema_extra=_MODEL,
    )
    quantization: Quantization = Field(
        default="stored",
        description="Form of the weights. stored: as the model folder holds them. bnb-4bit, "
        "bnb-8bit: quantized while loading, by bitsandbytes (NF4, LLM.int8). none: quantized "
        "weights are dequantized. A capture that is continued keeps its form.",
        json_schema_extra=_MODEL,
    )
    bos: BosPolicy = Field(
        default="auto",
        description="Whether documents begin with the BOS token. auto: as the tokenizer does.",
        json_schema_extra=_MODEL,
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="What to do with a document that has logits that are not finite. stop: end "
        "the capture. skip: keep no entries of the document.",
        json_schema_extra=_WORK,
    )
    engine: str = Field(
        default=DEFAULT_ENGINE,
        min_length=1,
        description="Engine that computes the rows. transformers, vllm-offline, tensorrt-llm: in "
        "this process. llama.cpp: a GGUF file as it is, in this process. vllm, sglang: a server "
        "that is running. Plugins register others.",
        json_schema_extra={**_ENGINE, "metavar": "NAME"},
    )
    served_model: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the model at the server. By default the only one that it serves.",
        json_schema_extra={**_ENGINE, "metavar": "NAME"},
    )
    server: Listed[str, str] = Field(
        default=listed(),
        description="URL of a server of `engine`, such as http://localhost:8000. Several share "
        "the documents.",
        json_schema_extra={**_ENGINE, "metavar": "URL"},
    )
    requests_per_server: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Requests that a server computes at once.",
        json_schema_extra=_ENGINE,
    )
    request_timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds that a server may take for one document.",
        json_schema_extra=_ENGINE,
    )
    audit: AuditBy = Field(
        default="auto",
        description="What computes a sample of the documents once more, before a cache of another "
        "engine than transformers is complete. auto: transformers, where the model's weights fit "
        "into this machine's memory; else the engine itself, in another order.",
        json_schema_extra=_ENGINE,
    )
    audit_limit: float = Field(
        default=0.1,
        gt=0,
        description="Nats by which the next tokens' log-probabilities of an audited document may "
        "differ in the mean. Quantized weights need more.",
        json_schema_extra=_ENGINE,
    )
    retry_seconds: float = Field(
        default=900.0,
        ge=0,
        description="Seconds during which a document is tried again while servers fail or "
        "restart. Then the capture ends.",
        json_schema_extra=_ENGINE,
    )
    device: str = Field(
        default="auto",
        description="Device that runs the model, such as cpu, cuda, cuda:1 or mps. auto: a GPU if "
        "there is one.",
        json_schema_extra={**_WORK, "metavar": "DEVICE"},
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Number of documents in one forward pass. By default as many as fit a budget "
        "of tokens, which is halved when memory runs out.",
        json_schema_extra=_WORK,
    )
    attention: str | None = Field(
        default=None,
        description="Attention implementation of transformers, such as sdpa, eager or "
        "flash_attention_2. By default the model's own.",
        json_schema_extra={**_MODEL, "metavar": "NAME"},
    )
    revision: str | None = Field(
        default=None,
        description="Commit or tag of a hub model.",
        json_schema_extra={**_MODEL, "metavar": "COMMIT"},
    )
    license: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="License of the model, such as apache-2.0, which the cache records and "
        "`fusestore publish` names. By default the one that the model's card, metadata or license "
        "file names.",
        json_schema_extra={**_MODEL, "metavar": "LICENSE"},
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model folder contains. Only for code you have read.",
        json_schema_extra=_MODEL,
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers of the model with torch.compile before the first "
        "document. Pays in long captures.",
        json_schema_extra=_MODEL,
    )
    device_map: DeviceMap | None = Field(
        default=None,
        description="Distribute the layers over all devices of this machine, by this rule of "
        "accelerate; what fits on no GPU stays in memory or on disk. By default the model lies on "
        "one device.",
        json_schema_extra=_LARGE,
    )
    max_memory: Listed[str, str] = Field(
        default=listed(),
        description="With `device_map`: memory that weights may take on one device, such as "
        "0=70GiB for the first GPU or cpu=200GiB. Devices that are not named are not used.",
        json_schema_extra={**_LARGE, "metavar": "DEVICE=SIZE"},
    )
    offload_folder: Path | None = Field(
        default=None,
        description="With `device_map`: folder for weights that stay on disk, where the model's "
        "own files cannot be read in their place.",
        json_schema_extra={**_LARGE, "metavar": "FOLDER"},
    )
    tensor_parallel: bool = Field(
        default=False,
        description="Divide every weight among the processes that torchrun started, which run "
        "each batch together. Without it such processes are separate writers.",
        json_schema_extra=_LARGE,
    )
    rows_per_shard: int = Field(
        default=262_144,
        ge=1,
        description="Rows of one shard, which one worker writes and an interruption may lose.",
        json_schema_extra=_WORK,
    )
    rows_per_chunk: int = Field(
        default=2_048,
        ge=1,
        description="Rows of one chunk, which is read and decoded whole. `rows_per_shard` must be "
        "a multiple of it.",
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
        if self.engine == DEFAULT_ENGINE and (self.server or self.served_model):
            raise ValueError(
                f"server and served_model have no effect with engine {DEFAULT_ENGINE}, which runs "
                "the model in this process; name the server's engine, such as vllm or sglang"
            )
        problems = model_setting_problems(
            self.placement,
            self.quantization,
            engine=self.engine,
            device=self.device,
            compiles=self.compile,
        )
        if problems:
            raise ValueError("; ".join(problems))
        if self.rows_per_shard % self.rows_per_chunk:
            raise ValueError(
                f"rows_per_shard {self.rows_per_shard} is no multiple of "
                f"rows_per_chunk {self.rows_per_chunk}"
            )
        return self

    @property
    def placement(self) -> Placement:
        """How the model is spread over devices."""
        return Placement(
            device_map=self.device_map,
            max_memory=parse_memory(self.max_memory),
            offload_folder=self.offload_folder,
            tensor_parallel=self.tensor_parallel,
        )

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
