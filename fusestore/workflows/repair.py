"""Repairing a store: damaged artifacts are made again from their inputs.

Damaged bytes are never an input: inputs are repaired before the artifacts made from them, and an
artifact with damaged inputs is not repaired. The result is compared with the sound manifest or
receipts of the artifact, and verified at the end. Documents and trained models cannot be made again
from the store: the result names them, with the command to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusestore.errors import FusestoreError, NotFoundError
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.findings import Finding
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.workflows.verification import check_artifact

if TYPE_CHECKING:
    from fusestore.capture.settings import CaptureSettings
    from fusestore.models.model import Model
    from fusestore.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Repair:
    """The repair of a damaged artifact.

    Attributes:
        findings: the damage.
        problem: why it could not be repaired; None if it was.
    """

    findings: list[Finding]
    problem: str | None


class RepairedArtifact(Frozen):
    """The repair of one damaged artifact.

    Attributes:
        artifact: `kind/name`.
        findings: the damage.
        problem: why it could not be repaired; null if it was.
    """

    artifact: str
    findings: tuple[Finding, ...]
    problem: str | None


class Repairs(Frozen):
    """The repairs of a store; what `fusestore verify --repair --json` prints.

    Attributes:
        store: its address.
        artifacts: those that were damaged.
    """

    store: str
    artifacts: tuple[RepairedArtifact, ...]


def repairs_report(store: Store, repairs: Mapping[str, Repair]) -> Repairs:
    """What `repair_store` returned, for JSON."""
    return Repairs(
        store=str(store.location),
        artifacts=tuple(
            RepairedArtifact(artifact=path, findings=tuple(done.findings), problem=done.problem)
            for path, done in repairs.items()
        ),
    )


def repair_store(
    store: Store,
    path: str | None = None,
    *,
    models: Sequence[str] = (),
    settings: CaptureSettings | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Repair]:
    """Check one artifact or all artifacts, and make the damaged files again.

    Args:
        store: the store.
        path: `kind/name`; None repairs everything.
        models: models to compute distributions or tokens with; they are found by digest, in any
            order and under any name.
        settings: device, batch size, attention and trust for running the models.
        reporter: receives progress updates.

    Returns:
        The repairs of damaged artifacts, by `kind/name`.

    Raises:
        NotFoundError: no such store or artifact, or no such model.
    """
    from fusestore.capture.settings import CaptureSettings

    tools = _Models(store, models, settings or CaptureSettings(), reporter or SilentReporter())
    repairs: dict[str, Repair] = {}
    # The list has each artifact after its inputs.
    for artifact in list_artifacts(store) if path is None else [find_artifact(store, path)]:
        findings = check_artifact(store, artifact)
        if not findings:
            continue
        problem = None
        try:
            artifact.kind.rebuild(store, artifact, findings, tools)
            remaining = check_artifact(store, find_artifact(store, artifact.path))
            if remaining:
                problem = f"{remaining[0].file} {remaining[0].problem}"
        except FusestoreError as error:
            problem = str(error)
        repairs[artifact.path] = Repair(findings, problem)
    return repairs


class _Models:
    """The given models, found by digest; implements `RebuildTools`.

    Attributes:
        settings: for running the models.
        reporter: receives progress updates.
    """

    def __init__(
        self, store: Store, specs: Sequence[str], settings: CaptureSettings, reporter: Reporter
    ) -> None:
        self._store = store
        self._specs = specs
        self.settings = settings
        self.reporter = reporter

    @cached_property
    def _opened(self) -> Mapping[str, Model]:
        """The models by spec."""
        from fusestore.models.model import Model

        return {
            spec: Model.open(
                spec,
                store=self._store,
                revision=self.settings.revision,
                trust_remote_code=self.settings.trust_remote_code,
            )
            for spec in self._specs
        }

    def tokenizer(self, digest: str) -> Tokenizer:
        """The tokenizer with a digest, or with its first 16 digits."""
        for model in self._opened.values():
            if model.tokenizer.digest.startswith(digest):
                return model.tokenizer
        digests = {spec: model.tokenizer.digest for spec, model in self._opened.items()}
        raise NotFoundError(_not_given("tokenizer", digest, digests))

    def model(self, digest: str, tokenizer_digest: str, cache: str) -> Model:
        """The model with a digest and with the tokenizer of `tokenizer_digest`."""
        fitting = {spec: model for spec, model in self._opened.items() if digest in model.digests()}
        if not fitting:
            digests = {spec: model.digest for spec, model in self._opened.items()}
            raise NotFoundError(_not_given(f"model of cache {cache!r}", digest, digests))
        tokenizers = {spec: model.tokenizer.digest for spec, model in fitting.items()}
        for spec, model in fitting.items():
            if tokenizers[spec] == tokenizer_digest:
                return model
        raise NotFoundError(
            _not_given(f"model of cache {cache!r} with the tokenizer", tokenizer_digest, tokenizers)
        )


def _not_given(needed: str, digest: str, given: Mapping[str, str]) -> str:
    others = "".join(f"; {spec} has {other[:16]}" for spec, other in given.items())
    return (
        f"The repair needs the {needed} with digest {digest[:16]}, but "
        f"{'no --model has it' if given else '--model was not given'}{others}. "
        "Give the folder, hub id, .gguf file or package:NAME that it was captured with as --model."
    )
