"""What a thing was made from, found again in its store by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from fusestore.errors import NotFoundError
from fusestore.store.inventory import Thing, is_merged, list_things
from fusestore.store.layout import Store
from fusestore.workflows.sharing.things import MANIFEST, VOCABULARY, names_in, read_document


def with_inputs(store: Store, names: list[str]) -> list[str]:
    """The things and all they were made from, inputs first, each once.

    Raises:
        NotFoundError: something a thing was made from is not in its store any more.
    """
    return _Inputs(store).closure(names, _Inputs.of)


def with_vocabularies(store: Store, names: list[str]) -> list[str]:
    """The things, each cache after its vocabulary: only capturing could make that again."""
    return _Inputs(store).closure(names, _Inputs.vocabularies)


class _Inputs:
    """One look at a store's manifests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def closure(
        self, names: list[str], inputs: Callable[[_Inputs, str], Iterator[str]]
    ) -> list[str]:
        """The names and what `inputs` gives for them, and so on; inputs first."""
        found: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in found:
                for needed in inputs(self, name):
                    visit(needed)
                found[name] = None

        for name in names:
            visit(name)
        return list(found)

    def vocabularies(self, name: str) -> Iterator[str]:
        """The vocabulary a cache is read with, if the store has it."""
        thing = self._things.get(name) if name.startswith("cache/") else None
        if thing is not None and thing.manifest is not None:
            vocabulary = _vocabulary_name(thing.manifest["fingerprint"]["tokenizer_digest"])
            if self._names.get(vocabulary):
                yield vocabulary

    def of(self, name: str) -> Iterator[str]:
        """Names of what a thing was directly made from."""
        thing = self._things.get(name)
        if thing is None or thing.manifest is None:
            return
        manifest = thing.manifest
        if thing.kind == "cache":
            fingerprint = manifest["fingerprint"]
            yield self._find("corpus", fingerprint["corpus"]["digest"], name)
            yield _vocabulary_name(fingerprint["tokenizer_digest"])
        elif thing.kind == "map":
            for side in ("source", "target"):
                yield _vocabulary_name(manifest[f"{side}_tokenizer_digest"])
        elif thing.kind == "alignment":
            fingerprint = manifest["fingerprint"]
            yield self._find("corpus", fingerprint["corpus_digest"], name)
            yield self._find("cache", fingerprint["source_cache_digest"], name)
            if fingerprint["vocabulary_map_digest"] is not None:
                yield self._find("map", fingerprint["vocabulary_map_digest"], name)
            yield _vocabulary_name(fingerprint["target_tokenizer_digest"])
        elif thing.kind == "fused":
            yield from self._of_fused(manifest["plan"], name)
        elif thing.kind == "model" and not is_merged(thing):
            # What is merged comes from outside.
            yield self._find("fused", manifest["plan"]["dataset_digest"], name)

    def _of_fused(self, plan: Mapping[str, Any], name: str) -> Iterator[str]:
        yield self._find("corpus", plan["corpus_digest"], name)
        for source in plan["inputs"]:
            yield self._find("cache", source["cache_digest"], name)
            if source["vocabulary_map_digest"] is not None:
                yield self._find("map", source["vocabulary_map_digest"], name)
            if source["alignment_digest"] is not None:
                yield self._find("alignment", source["alignment_digest"], name)
        if plan["target_cache_digest"] is not None:
            yield self._find("cache", plan["target_cache_digest"], name)

    @cached_property
    def _names(self) -> dict[str, bool]:
        return names_in(self._store)

    @cached_property
    def _things(self) -> dict[str, Thing]:
        return {f"{thing.kind}/{thing.name}": thing for thing in list_things(self._store)}

    @cached_property
    def _by_digest(self) -> dict[tuple[str, str], str]:
        """Name of each complete thing by its kind and what other manifests call it by."""
        found = {}
        for name, thing in self._things.items():
            if thing.manifest is None:
                continue
            if thing.kind == "cache":
                digest = thing.manifest["content_digest"]
            elif thing.kind == "fused":
                # Known by its plan, in whichever form it is.
                digest = thing.manifest["plan_digest"]
            else:
                digest = read_document(thing.location, MANIFEST, thing.kind).identity
            found[thing.kind, digest] = name
        return found

    def _find(self, kind: str, digest: str, wanted_by: str) -> str:
        try:
            return self._by_digest[kind, digest]
        except KeyError:
            what = "fused dataset" if kind == "fused" else kind
            raise NotFoundError(
                f"{wanted_by} was made from a {what} with the digest {digest[:16]}…, which is not "
                f"in {self._store.location} any more. Share it without its inputs."
            ) from None


def _vocabulary_name(tokenizer_digest: str) -> str:
    return f"{VOCABULARY}/{tokenizer_digest[:16]}"
