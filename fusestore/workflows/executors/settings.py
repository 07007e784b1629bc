"""`ExecutorSettings`: which processes make the shards of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from fusestore.errors import InvalidInputError, did_you_mean
from fusestore.store.manifest import Frozen

ExecutorName = Literal["local", "slurm", "ray"]

NAMES: tuple[ExecutorName, ...] = ("local", "slurm", "ray")

_PANEL: dict[str, JsonValue] = {"panel": "Several processes"}


class ExecutorSettings(Frozen):
    """Where the workers of one command run. Without `executor` there is one: the command itself."""

    executor: str | None = Field(
        default=None,
        description="Run the command in several processes, which share the shards. local[:N]: N "
        "processes here. slurm[:N]: write a Slurm array script of N tasks. ray[:ADDRESS]: actors "
        "of a Ray cluster.",
        json_schema_extra={**_PANEL, "metavar": "NAME[:…]"},
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Number of processes of `executor`; the N of local:N and slurm:N. By default 2 "
        "for local, 4 for slurm, and with ray one for each node.",
        json_schema_extra=_PANEL,
    )
    worker_cpus: int | None = Field(
        default=None,
        ge=1,
        description="CPU cores of each worker. By default local divides the cores of this machine, "
        "and slurm and ray reserve 1.",
        json_schema_extra=_PANEL,
    )
    worker_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that slurm or ray reserve for each worker.",
        json_schema_extra=_PANEL,
    )
    slurm_options: dict[str, str] = Field(
        default_factory=dict,
        description="Option of sbatch to write into the script, such as partition=gpu or "
        "time=04:00:00.",
        json_schema_extra={**_PANEL, "names": ["--slurm-option"]},
    )
    script: Path | None = Field(
        default=None,
        description="File that the Slurm script is written to. By default KIND-NAME.sbatch.",
        json_schema_extra={**_PANEL, "short": "-o", "metavar": "FILE"},
    )
    submit: bool = Field(
        default=False,
        description="Submit the Slurm script with sbatch.",
        json_schema_extra=_PANEL,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        name, argument = self._parts
        if name is None:
            given = sorted(self.model_fields_set - {"executor"})
            if given:
                raise InvalidInputError(f"{', '.join(given)} needs executor.")
            return self
        if name not in NAMES:
            raise InvalidInputError(
                f"executor is {self.executor!r}; expected local[:N], slurm[:N] or ray[:ADDRESS]. "
                f"{did_you_mean(name, NAMES)}".rstrip()
            )
        if name != "ray" and argument is not None:
            if not argument.isdecimal() or int(argument) < 1:
                raise InvalidInputError(
                    f"executor is {self.executor!r}; expected a number of processes after {name}:."
                )
            if self.workers is not None:
                raise InvalidInputError(
                    f"executor {self.executor!r} and workers exclude each other."
                )
        if name != "slurm":
            given = sorted({"slurm_options", "script", "submit"} & self.model_fields_set)
            if given:
                raise InvalidInputError(f"{', '.join(given)} needs executor slurm, not {name}.")
        if name == "local" and self.worker_gpus is not None:
            raise InvalidInputError(
                "worker_gpus needs executor slurm or ray; the workers of local take the GPUs of "
                "this machine in turn."
            )
        return self

    @property
    def name(self) -> ExecutorName | None:
        """The executor; None for the command's own process."""
        name, _ = self._parts
        return next((known for known in NAMES if known == name), None)

    @property
    def num_workers(self) -> int | None:
        """Number of processes, if it was given."""
        _, argument = self._parts
        if self.name != "ray" and argument is not None:
            return int(argument)
        return self.workers

    @property
    def address(self) -> str | None:
        """Address of the Ray cluster; None for the one that the environment names, or a new one."""
        return self._parts[1] if self.name == "ray" else None

    @property
    def _parts(self) -> tuple[str | None, str | None]:
        if self.executor is None:
            return None, None
        name, colon, argument = self.executor.partition(":")
        return name, argument if colon else None
