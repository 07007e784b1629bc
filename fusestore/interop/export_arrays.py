"""Exports to plain arrays, `.npz` or `.safetensors`: the layout that `numpy_arrays` describes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.reader import Cache
from fusestore.interop.export import refuse_samples
from fusestore.progress import Progress

_TOKENS_AT_ONCE = 2**16


def export_numpy(cache: Cache, path: Path, progress: Progress) -> None:
    """One `.npz` file of all arrays; it may be larger than memory."""
    refuse_samples(cache, "numpy")
    arrays = _shapes(cache)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, (name, (dtype, shape)) in enumerate(arrays.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as data:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(data, header)
                for values in _blocks(cache, name):
                    data.write(np.ascontiguousarray(values, dtype).tobytes())
            progress(cache.fingerprint.num_tokens * (number + 1), cache.fingerprint.num_tokens * 7)


def export_safetensors(cache: Cache, path: Path, progress: Progress) -> None:
    """One `.safetensors` file of all arrays, which are in memory meanwhile."""
    from safetensors.numpy import save_file

    refuse_samples(cache, "safetensors")
    whole: dict[str, npt.NDArray[Any]] = {}
    for name, (dtype, shape) in _shapes(cache).items():
        parts = [np.ascontiguousarray(each, dtype) for each in _blocks(cache, name)]
        whole[name] = np.concatenate(parts).reshape(shape)
    save_file(whole, path, metadata={"format": "fusestore-arrays"})
    progress(cache.fingerprint.num_tokens, cache.fingerprint.num_tokens)


def _shapes(cache: Cache) -> dict[str, tuple[str, tuple[int, ...]]]:
    fingerprint = cache.fingerprint
    tokens, rows, k = fingerprint.num_tokens, fingerprint.num_rows, cache.k
    return {
        "token_ids": ("<i4", (tokens,)),
        "document_offsets": ("<i8", (fingerprint.num_documents + 1,)),
        "has_row": ("|b1", (tokens,)),
        "ids": ("<i4", (rows, k)),
        "logprobs": ("<f4", (rows, k)),
        "tail": ("<f4", (rows,)),
        "label_logprob": ("<f4", (rows,)),
    }


def _blocks(cache: Cache, name: str) -> Any:  # noqa: ANN401 - an iterator of arrays
    if name == "document_offsets":
        yield cache.document_offsets
        return
    for start in range(0, len(cache), _TOKENS_AT_ONCE):
        stop = min(start + _TOKENS_AT_ONCE, len(cache))
        if name == "token_ids":
            yield cache.read_tokens(start, stop)[0]
        elif name == "has_row":
            yield cache.kept.mask(start, stop)
        else:
            yield getattr(cache[start:stop], name)[cache.kept.mask(start, stop)]
