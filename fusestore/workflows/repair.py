"""Repairing a store: what `verify` finds damaged is made again from what it was made from.

Damaged bytes are never an input. Each thing is repaired only when the things it was made from are
sound, which is why they go first; what comes out is checked against whatever sound manifest or
receipt tells what it must be, and verified again at the end. Documents and trained models come
from outside the store: they are named, with what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusestore.cache.verify import Finding
from fusestore.errors import FusestoreError, InvalidInputError, NotFoundError
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.workflows.verification import verify_store

if TYPE_CHECKING:
    from fusestore.capture.settings import CaptureSettings
    from fusestore.models.model import Model
    from fusestore.tokenizers.tokenizer import Tokenizer

_ORDER = ("corpus", "vocabulary", "cache", "map", "alignment", "fused", "model")
"""Kinds of things in an order in which each comes after what it is made from."""


@dataclass(frozen=True)
class Repair:
    """What became of a damaged thing.

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
    """Check one thing or all of them, and make exactly what is damaged again.

    Args:
        store: the store.
        path: `kind/name`; None repairs everything.
        models: the models whose distributions or tokens may have to be computed again; found by
            digest, so their order and names do not matter.
        settings: device, batch size, attention and trust for running them.
        reporter: receives progress updates.

    Returns:
        The things that were damaged, by `kind/name`.

    Raises:
        NotFoundError: no such store or thing, or no such model.
    """
    from fusestore.capture.settings import CaptureSettings

    given = _Models(store, models, settings or CaptureSettings())
    repairs: dict[str, Repair] = {}
    checked = verify_store(store, path)
    for name in sorted(checked, key=lambda name: _ORDER.index(name.partition("/")[0])):
        if not checked[name]:
            continue
        problem = None
        try:
            _REPAIRS[name.partition("/")[0]](
                store, name.partition("/")[2], checked[name], given, reporter or SilentReporter()
            )
            left = verify_store(store, name)[name]
            if left:
                problem = f"{left[0].file} {left[0].problem}"
        except FusestoreError as error:
            problem = str(error)
        repairs[name] = Repair(checked[name], problem)
    return repairs


def remedy(store: Store, name: str, finding: Finding) -> str:
    """What to do about a finding in the thing `kind/name`: a command, with its model if any."""
    kind, _, own = name.partition("/")
    again = f"fusestore verify {name} --store {store.location} --repair"
    file = finding.file
    if kind == "model":
        return f"delete {store.location}/models/{own} and run the same `fusestore train` again"
    if kind == "corpus" and file in ("documents.parquet", "manifest.json"):
        return (
            f"delete {store.location}/corpora/{own}/{file} and run the same `fusestore corpus` "
            "again, with the same inputs"
        )
    if kind in ("cache", "vocabulary") or file.startswith("tokens/"):
        return f"{again} --model MODEL"
    return again


class _Models:
    """The models that were given, by digest."""

    def __init__(self, store: Store, specs: Sequence[str], settings: CaptureSettings) -> None:
        self._store = store
        self._specs = specs
        self.settings = settings

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

    def model(self, digest: str, tokenizer_digest: str, name: str) -> Model:
        """The model of a digest that has the tokenizer of the other one."""
        found = {spec: model.digest for spec, model in self._opened.items()}
        if digest not in found.values():
            raise NotFoundError(_not_given(f"model of cache {name!r}", digest, found))
        fitting = {spec: self._opened[spec] for spec in found if found[spec] == digest}
        tokenizers = {spec: model.tokenizer.digest for spec, model in fitting.items()}
        for spec, model in fitting.items():
            if tokenizers[spec] == tokenizer_digest:
                return model
        raise NotFoundError(
            _not_given(f"model of cache {name!r} with the tokenizer", tokenizer_digest, tokenizers)
        )


def _not_given(what: str, digest: str, found: Mapping[str, str]) -> str:
    has = "".join(f"; {spec} has {other[:16]}" for spec, other in found.items())
    return (
        f"Repairing this takes the {what} with digest {digest[:16]}, and "
        f"{'--model was not given' if not found else 'no --model has it'}{has}. "
        "Give the folder, hub id, .gguf file or package:NAME that it was captured with as --model."
    )


def _repair_corpus(
    store: Store, name: str, findings: Sequence[Finding], models: _Models, _reporter: Reporter
) -> None:
    from fusestore.corpus.repair import repair_corpus

    repair_corpus(store, name, {finding.file for finding in findings}, models.tokenizer)


def _repair_vocabulary(
    store: Store, name: str, _findings: Sequence[Finding], models: _Models, _reporter: Reporter
) -> None:
    from fusestore.corpus.repair import repair_vocabulary

    repair_vocabulary(store, name, models.tokenizer)


def _repair_cache(
    store: Store, name: str, findings: Sequence[Finding], models: _Models, reporter: Reporter
) -> None:
    from fusestore.capture.repair import repair_cache, trusted_fingerprint

    fingerprint = trusted_fingerprint(store.cache(name))
    model = models.model(fingerprint.model.spec_digest, fingerprint.tokenizer_digest, name)
    repair_cache(store, name, findings, model, models.settings, reporter)


def _repair_map(
    store: Store, name: str, _findings: Sequence[Finding], _models: _Models, _reporter: Reporter
) -> None:
    from fusestore.align.repair import repair_vocabulary_map

    repair_vocabulary_map(store, name)


def _repair_alignment(
    store: Store, name: str, _findings: Sequence[Finding], _models: _Models, _reporter: Reporter
) -> None:
    from fusestore.align.repair import repair_alignment

    repair_alignment(store, name)


def _repair_fused(
    store: Store, name: str, _findings: Sequence[Finding], _models: _Models, _reporter: Reporter
) -> None:
    from fusestore.fuse.repair import repair_fused

    repair_fused(store, name)


def _repair_model(
    store: Store, name: str, findings: Sequence[Finding], _models: _Models, _reporter: Reporter
) -> None:
    raise InvalidInputError(
        "A trained model cannot be recomputed byte for byte: "
        f"{remedy(store, f'model/{name}', findings[0])}."
    )


_REPAIRS: Mapping[str, Callable[[Store, str, Sequence[Finding], _Models, Reporter], None]] = {
    "corpus": _repair_corpus,
    "vocabulary": _repair_vocabulary,
    "cache": _repair_cache,
    "map": _repair_map,
    "alignment": _repair_alignment,
    "fused": _repair_fused,
    "model": _repair_model,
}
