"""Repairing a store: what `verify` finds damaged is made again from what it was made from.

Damaged bytes are never an input. Each artifact is repaired only when those it was made from are
sound, which is why they go first; what comes out is checked against whatever sound manifest or
receipt tells what it must be, and verified again at the end. Documents and trained models come
from outside the store: they are named, with what to do.
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
from fusestore.workflows.verification import check_artifact

if TYPE_CHECKING:
    from fusestore.capture.settings import CaptureSettings
    from fusestore.models.model import Model
    from fusestore.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Repair:
    """What became of a damaged artifact.

    Attributes:
        findings: what was wrong.
        problem: why it is not repaired; None when it is.
    """

    findings: list[Finding]
    problem: str | None


def repair_store(
    store: Store,
    path: str | None = None,
    *,
    models: Sequence[str] = (),
    settings: CaptureSettings | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Repair]:
    """Check one artifact or all of them, and make exactly what is damaged again.

    Args:
        store: the store.
        path: `kind/name`; None repairs everything.
        models: the models whose distributions or tokens may have to be computed again; found by
            digest, so their order and names do not matter.
        settings: device, batch size, attention and trust for running them.
        reporter: receives progress updates.

    Returns:
        The artifacts that were damaged, by `kind/name`.

    Raises:
        NotFoundError: no such store or artifact, or no such model.
    """
    from fusestore.capture.settings import CaptureSettings

    tools = _Models(store, models, settings or CaptureSettings(), reporter or SilentReporter())
    repairs: dict[str, Repair] = {}
    # Listed so that each artifact comes after those it is made from.
    for artifact in list_artifacts(store) if path is None else [find_artifact(store, path)]:
        findings = check_artifact(store, artifact)
        if not findings:
            continue
        problem = None
        try:
            artifact.kind.rebuild(store, artifact, findings, tools)
            left = check_artifact(store, find_artifact(store, artifact.path))
            if left:
                problem = f"{left[0].file} {left[0].problem}"
        except FusestoreError as error:
            problem = str(error)
        repairs[artifact.path] = Repair(findings, problem)
    return repairs


class _Models:
    """The models that were given, by digest; `RebuildTools` of every kind.

    Attributes:
        settings: for running them.
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
        """By spec."""
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
        """The tokenizer of a digest, or of its first 16 digits."""
        for model in self._opened.values():
            if model.tokenizer.digest.startswith(digest):
                return model.tokenizer
        found = {spec: model.tokenizer.digest for spec, model in self._opened.items()}
        raise NotFoundError(_not_given("tokenizer", digest, found))

    def model(self, digest: str, tokenizer_digest: str, cache: str) -> Model:
        """The model of a digest that has the tokenizer of the other one."""
        found = {spec: model.digest for spec, model in self._opened.items()}
        if digest not in found.values():
            raise NotFoundError(_not_given(f"model of cache {cache!r}", digest, found))
        fitting = {spec: self._opened[spec] for spec in found if found[spec] == digest}
        tokenizers = {spec: model.tokenizer.digest for spec, model in fitting.items()}
        for spec, model in fitting.items():
            if tokenizers[spec] == tokenizer_digest:
                return model
        raise NotFoundError(
            _not_given(f"model of cache {cache!r} with the tokenizer", tokenizer_digest, tokenizers)
        )


def _not_given(what: str, digest: str, found: Mapping[str, str]) -> str:
    has = "".join(f"; {spec} has {other[:16]}" for spec, other in found.items())
    return (
        f"Repairing this takes the {what} with digest {digest[:16]}, and "
        f"{'--model was not given' if not found else 'no --model has it'}{has}. "
        "Give the folder, hub id, .gguf file or package:NAME that it was captured with as --model."
    )
