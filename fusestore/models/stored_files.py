"""The files of a model in a store, which may come from a stranger: none of them may run code.

Python code runs where a JSON file names classes of the folder (`auto_map`) or kernels of the hub as
its implementation of attention. Files of pickles hold programs, which torch's unpickler restricts,
but whose flaws have run code before.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.models.weight_files import json_object, weight_files
from fusestore.storage.foreign_names import without_links_out
from fusestore.storage.location import Location

CODE_KEY = "auto_map"
"""The key by which a JSON file of a model folder names classes in Python files beside it."""

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}

_DATA = {"tokenizer.json", "vocab.json", "added_tokens.json"}
"""JSON files of tokens, in which any word may stand."""


def check_stored_files(location: Location, name: str, *, trust_remote_code: bool) -> None:
    """Check the files of a model in a store before anything reads them.

    Args:
        location: its local folder in the store, or the copy of one.
        name: of the model, for messages.
        trust_remote_code: whether classes of the folder may run.

    Raises:
        InvalidInputError: a file holds pickles, names code or kernels, or is a symbolic link out
            of the store.
    """
    base, folder = Path(location.base or location.url), location.path
    for path in _files(folder):
        without_links_out(base, path)
        if path.suffix.lower() in _PICKLES:
            raise InvalidInputError(
                f"Model {name!r} of the store holds {path.name}, a file of pickles, which can run "
                f"code; models in a store hold safetensors. If you trust {path.parent}, load the "
                "weights with transformers, write them with save_pretrained, and remove the file."
            )
        if path.suffix.lower() == ".json" and path.name not in _DATA:
            _check_document(path, name, trust_remote_code)
    for path in weight_files(folder) if (folder / "config.json").is_file() else ():
        if path.suffix != ".safetensors":
            raise InvalidInputError(
                f"Model {name!r} of the store reads its weights from {path.name}; models in a "
                "store hold safetensors. Write it with save_pretrained."
            )


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # A link to a folder is not followed, but looked at.
        yield from (Path(parent, name) for name in folders if Path(parent, name).is_symlink())
        yield from (Path(parent, name) for name in names)


def _check_document(path: Path, name: str, trust_remote_code: bool) -> None:
    content: dict[str, Any] = {}
    # Who reads a file that is no JSON object fails, and runs nothing.
    with contextlib.suppress(InvalidInputError, OSError):
        content = json_object(path)
    for key, value in _entries(content):
        if key == CODE_KEY and value and not trust_remote_code:
            raise InvalidInputError(
                f"Model {name!r} of the store needs Python code: {path.name} names classes of "
                f"files in {path.parent} ({CODE_KEY}). Read them; if you trust them, add "
                "--trust-remote-code (trust_remote_code=True in Python)."
            )
        if key.endswith("_implementation") and any(
            "/" in text or ":" in text for text in _texts(value)
        ):
            raise InvalidInputError(
                f"Model {name!r} of the store asks for kernels of others: {path.name} has {key} = "
                f"{json.dumps(value)}. They are code from the hub, which a store may not choose. "
                "Remove the key, and choose attention by an option."
            )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    """Keys and values of a JSON value, at any depth."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, str):
        yield value
    for _, inner in _entries(value):
        if isinstance(inner, str):
            yield inner
