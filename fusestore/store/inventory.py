"""What a store holds, read from manifests alone: nothing is decoded and nothing is imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.layout import Store

KINDS = {
    "corpus": "corpora",
    "cache": "caches",
    "map": "vocabulary_maps",
    "alignment": "alignments",
    "fused": "fused",
    "model": "models",
}
"""Kinds of things by the word the command line uses, in the order data flows through them."""


@dataclass(frozen=True)
class Thing:
    """One thing in a store.

    Attributes:
        kind: a key of `KINDS`.
        name: its name.
        location: its folder.
        manifest: the manifest's content; None while the thing is unfinished.
    """

    kind: str
    name: str
    location: Location
    manifest: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        """Whether it is finished and can be read."""
        return self.manifest is not None


def list_things(store: Store) -> list[Thing]:
    """Everything in the store, in the order data flows, then by name.

    Raises:
        NotFoundError: there is no store.
    """
    if not store.location.exists():
        raise NotFoundError(
            f"There is no store at {store.location}. "
            "`fusestore corpus` or `fusestore run` makes one."
        )
    return [
        _read(kind, store.location / folder / name)
        for kind, folder in KINDS.items()
        for name in store.names(folder)
        if not name.startswith(".")
    ]


def find_thing(store: Store, path: str) -> Thing:
    """The thing called `kind/name`, for instance `cache/smollm2`.

    Raises:
        InvalidInputError: not of that form.
        NotFoundError: no such thing; the message lists what there is.
    """
    kind, separator, name = path.partition("/")
    if not separator or kind not in KINDS:
        raise InvalidInputError(
            f"{path!r} names no thing: write KIND/NAME with a kind of {', '.join(KINDS)}."
        )
    things = list_things(store)
    for thing in things:
        if (thing.kind, thing.name) == (kind, name):
            return thing
    there = ", ".join(f"{thing.kind}/{thing.name}" for thing in things) or "nothing"
    raise NotFoundError(f"There is no {path} in {store.location}. It holds: {there}.")


def _read(kind: str, location: Location) -> Thing:
    manifest = location / "manifest.json"
    if not manifest.exists():
        return Thing(kind, location.name, location, None)
    try:
        content = json.loads(manifest.read_bytes())
    except ValueError:
        content = {"damaged": "manifest.json is not valid JSON; run `fusestore verify`"}
    return Thing(kind, location.name, location, content)


def describe(thing: Thing) -> str:
    """One line on what a thing is."""
    manifest = thing.manifest
    if manifest is None and thing.kind == "fused":
        return "its other shards are made when they are read, or by `fusestore fuse --materialize`"
    if manifest is None:
        return "run the same command again to finish it"
    if "damaged" in manifest:
        return str(manifest["damaged"])
    return _DESCRIPTIONS[thing.kind](manifest)


def _kept(fingerprint: dict[str, Any]) -> str:
    """What a cache keeps of each row."""
    k = fingerprint["top_k"]
    if fingerprint["selection"] == "sampled":
        return f"{k} draws each"
    if fingerprint["selection"] == "top-p":
        return f"top {fingerprint['top_p']:g} of the mass in at most {k} entries"
    return f"top {k}"


def is_merged(thing: Thing) -> bool:
    """Whether a model came out of merging, not of training."""
    return thing.kind == "model" and "merge" in (thing.manifest or {})


def how_made(manifest: dict[str, Any]) -> str:
    """How a model came to be, from its manifest."""
    if "merge" in manifest:
        plan = manifest["merge"]
        return f"{plan['settings']['method']} merge of {len(plan['model_digests'])} models"
    plan, step = manifest["plan"], manifest["result_step"]
    text = f"{plan['settings']['objective']}, {manifest['num_tokens']:,} tokens trained"
    if lora := plan["settings"].get("lora"):
        text += (
            f", {'LoRA adapter alone' if lora['adapter_only'] else 'LoRA'} of rank {lora['rank']}"
        )
    return text if step == plan["total_steps"] else f"{text}, weights of step {step:,}"


def _model(manifest: dict[str, Any]) -> str:
    """How a model was made, and how well it predicts what it was evaluated on."""
    if "merge" in manifest:
        metrics = (manifest["evaluation"] or {"metrics": {}})["metrics"]
    else:
        points = {point["step"]: point["metrics"] for point in manifest["evaluations"]}
        metrics = points.get(manifest["result_step"], {})
    text = how_made(manifest)
    if "bits_per_byte" in metrics:
        text += f", held-out bits per byte {metrics['bits_per_byte']:.4f}"
    return text


_DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "corpus": lambda m: f"{m['num_documents']:,} documents, {m['num_bytes']:,} bytes",
    "cache": lambda m: (
        f"{m['fingerprint']['num_tokens']:,} tokens, {_kept(m['fingerprint'])}, "
        f"{m['num_bytes']:,} bytes"
    ),
    "map": lambda m: f"{m['method']}, {m['num_source_ids']:,} source tokens",
    "alignment": lambda m: ", ".join(f"{kind} {n:,}" for kind, n in m["counts"].items()),
    "fused": lambda m: (
        f"{m['plan']['recipe']['strategy']}, {m['num_tokens']:,} tokens, "
        f"{m['num_windows']:,} windows{', shared form' if m['form'] == 'shared' else ''}"
    ),
    "model": _model,
}
