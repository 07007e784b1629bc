"""The possible meanings of the text that names a model, by its form alone."""

from __future__ import annotations

from pathlib import Path

from fusestore.errors import NotFoundError, did_you_mean
from fusestore.storage.packages import SCHEME
from fusestore.store.layout import Store, is_name


def may_name_artifact(spec: str) -> bool:
    """Whether a spec is a plain name, so that it may mean an artifact of a store."""
    return is_name(spec) and not spec.endswith(".gguf")


def may_be_hub_id(spec: str) -> bool:
    """Whether a spec that is no folder of this machine may name a model on the hub."""
    return not (
        spec.startswith((SCHEME, ".", "/", "~")) or spec.endswith(".gguf") or spec.count("/") > 1
    )


def check_path(spec: str) -> None:
    """Check that the file or folder of a spec exists, if the spec names one and no hub id.

    Raises:
        NotFoundError: it does not.
    """
    if spec.startswith(SCHEME) or Path(spec).expanduser().exists():
        return
    if spec.endswith(".gguf"):
        raise NotFoundError(f"Model file {spec} does not exist.")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise NotFoundError(f"Model folder {spec} does not exist.")


def short_name(spec: str) -> str:
    """The name of the model of a path or a hub id, for messages."""
    path = Path(spec).expanduser()
    return path.stem if path.suffix == ".gguf" else path.absolute().name


def names_in(store: Store, name: str) -> str:
    """A sentence with the names by which models of the store open, and the nearest to `name`."""
    names = [*store.names("models"), *store.names("caches")]
    held = ", ".join(dict.fromkeys(names)) or "no models and no caches"
    return f"{did_you_mean(name, names)} {store.location} holds: {held}.".lstrip()
