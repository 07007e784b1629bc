"""What the text that names a model can mean, by its form alone."""

from __future__ import annotations

import difflib
from pathlib import Path

from fusestore.storage.packages import SCHEME
from fusestore.store.layout import Store, is_name


def may_name_artifact(spec: str) -> bool:
    """Whether a spec is a plain name, so that it may mean an artifact of a store."""
    return is_name(spec) and not spec.endswith(".gguf")


def may_be_hub_id(spec: str) -> bool:
    """Whether a spec that is no folder of this machine may be that of a model on the hub."""
    return not (
        spec.startswith((SCHEME, ".", "/", "~")) or spec.endswith(".gguf") or spec.count("/") > 1
    )


def short_name(spec: str) -> str:
    """What messages call the model of a path or a hub id."""
    path = Path(spec).expanduser()
    return path.stem if path.suffix == ".gguf" else path.absolute().name


def names_in(store: Store, wanted: str) -> str:
    """The store's names that a model may be opened by, the nearest one first of all."""
    names = [*store.names("models"), *store.names("caches")]
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    held = ", ".join(dict.fromkeys(names)) or "no models and no caches"
    return f"{hint}{store.location} holds: {held}."
