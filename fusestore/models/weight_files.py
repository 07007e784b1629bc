"""The files of a model folder that hold its weights, and whether each of them is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError

SAFETENSORS_FILE = "model.safetensors"
PYTORCH_FILE = "pytorch_model.bin"

_MAX_JSON_BYTES = 2**26

_LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights of a model folder from.

    Files that an index names are listed whether they exist or not.

    Returns:
        Paths in `folder`; none if it holds no weights that transformers reads.

    Raises:
        InvalidInputError: config.json or an index is not valid, or names files elsewhere.
    """
    named = json_object(folder / "config.json").get("transformers_weights")
    names = [named] if named is not None else [SAFETENSORS_FILE, PYTORCH_FILE]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidInputError(
                f"{folder / 'config.json'} names weights {name!r}: no file name."
            )
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.is_file():
                return _indexed(path) if path.suffix == ".json" else [path]
    return []


def tensor_files(folder: Path) -> dict[str, Path]:
    """The safetensors file that holds each tensor of a model folder, by the tensor's name.

    Raises:
        NotFoundError: a file is missing.
        InvalidInputError: a file is damaged.
    """
    files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    return {name: path for path in files for name in open_safetensors(path).keys()}  # noqa: SIM118 - no mapping


def check_weight_files(folder: Path) -> None:
    """Check that a model folder has weights, and that each of their files can be read.

    Raises:
        NotFoundError: there are no weights, or a file that the index names is missing.
        InvalidInputError: a file is a Git LFS pointer, cut off or otherwise damaged.
    """
    files = weight_files(folder)
    if not files:
        others = [p.name for p in sorted(folder.iterdir()) if p.suffix in _OTHER_WEIGHTS]
        raise NotFoundError(
            f"There are no weights in {folder}: neither {SAFETENSORS_FILE} nor {PYTORCH_FILE}, nor "
            "an index of parts"
            + (f"; {others[0]} is not in a format that is read here" if others else "")
            + ". Download the model whole, or write it with save_pretrained."
        )
    for path in files:
        if path.suffix == ".safetensors":
            open_safetensors(path)
        else:
            _check_whole(path)


_OTHER_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".pt", ".h5", ".msgpack")


def open_safetensors(path: Path) -> Any:  # noqa: ANN401 - safetensors is untyped
    """A safetensors file, memory-mapped.

    Raises:
        NotFoundError: it is missing.
        InvalidInputError: it is a Git LFS pointer, cut off or otherwise damaged.
    """
    from safetensors import SafetensorError, safe_open

    _check_whole(path)
    try:
        # Needs no close: the memory map ends with the object.
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} is no valid safetensors file ({error}). It has {path.stat().st_size:,} bytes "
            "and may be cut off: download it again."
        ) from error


def refuse_lfs_pointer(path: Path) -> None:
    """Check that a file is not the text that Git keeps in place of a large file.

    Raises:
        InvalidInputError: it is.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InvalidInputError(
                f"{path} is a Git LFS pointer: it stands for the weights, but does not hold them. "
                "Run `git lfs pull` in its folder, or download the file."
            )


def json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a model folder.

    Raises:
        InvalidInputError: the file is too large or holds no JSON object.
    """
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_JSON_BYTES:
        raise InvalidInputError(
            f"{path} is {num_bytes:,} bytes; expected at most {_MAX_JSON_BYTES:,}."
        )
    refuse_lfs_pointer(path)
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds no JSON object.")
    return content


def _indexed(index: Path) -> list[Path]:
    table = json_object(index).get("weight_map")
    if not isinstance(table, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in table.values()
    ):
        raise InvalidInputError(f"{index} has no weight_map of file names in that folder.")
    return [index.parent / name for name in sorted(set(table.values()))]


def _check_whole(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(
            f"{path} is missing, but the model's index names it. Download the model again."
        )
    refuse_lfs_pointer(path)
    if path.stat().st_size == 0:
        raise InvalidInputError(f"{path} is empty. Download it again.")
