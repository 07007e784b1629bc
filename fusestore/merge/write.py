"""Writing a merged model as a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from fusestore.errors import IncompatibleError, NonFiniteError
from fusestore.merge.rules import (
    linear,
    magnitude_threshold,
    sce,
    slerp,
    task_arithmetic,
    ties,
    varm,
)
from fusestore.merge.settings import MergeSettings
from fusestore.merge.weights import FUSE_INSTEAD, ModelWeights
from fusestore.progress import Progress, ProgressCounter
from fusestore.store.manifest import canonical_json
from fusestore.train.student.base_files import copy_base_files

MAX_FILE_BYTES = 512 * 2**20
"""Bytes of tensors in one file. Merging holds these in memory, and one float32 tensor per model."""


def write_merged(
    folder: Path,
    models: Sequence[ModelWeights],
    base: ModelWeights | None,
    settings: MergeSettings,
    progress: Progress,
) -> int:
    """Merge into a new local folder that `from_pretrained` loads.

    Configuration, tokenizer and other files are the first model's.

    Args:
        folder: the folder to create.
        models: models that `check_mergeable` accepts.
        base: the base model, for methods that need one.
        settings: how weights are merged.
        progress: receives the number of parameters done, over all passes.

    Returns:
        The number of parameters written.

    Raises:
        IncompatibleError: a tensor of integers differs between models.
        NonFiniteError: a merged tensor holds NaN or infinity; the message names it.
    """
    first = models[0]
    sizes = {key: prod(shape) for key, shape in first.shapes.items()}
    trims = settings.method == "ties"
    counter = ProgressCounter((1 + 2 * len(models) * trims) * sum(sizes.values()), progress)
    thresholds = [_threshold(model, base, settings, counter) for model in models if trims and base]
    merged = _merged(models, base, settings, thresholds, counter)
    folder.mkdir(parents=True)
    dtypes = _write_tensors(folder, merged)
    config = {key: value for key, value in first.config.items() if key != "torch_dtype"}
    config["dtype"] = str(max(dtypes, key=lambda dtype: dtypes[dtype])).removeprefix("torch.")
    (folder / "config.json").write_bytes(canonical_json(config))
    copy_base_files(first.folder, folder, with_code=first.model.trust_remote_code)
    return sum(sizes.values())


def _threshold(
    model: ModelWeights, base: ModelWeights, settings: MergeSettings, counter: ProgressCounter
) -> float:
    def vectors() -> Iterator[torch.Tensor]:
        for key, shape in model.shapes.items():
            if model.dtype(key).is_floating_point:
                yield model.tensor(key) - base.tensor(key)
            counter.add(prod(shape))

    return magnitude_threshold(vectors, settings.density)


def _merged(
    models: Sequence[ModelWeights],
    base: ModelWeights | None,
    settings: MergeSettings,
    thresholds: Sequence[float],
    counter: ProgressCounter,
) -> Iterator[tuple[str, torch.Tensor]]:
    weights = settings.weights_of(len(models))
    first = models[0]
    for key, shape in first.shapes.items():
        if first.dtype(key).is_floating_point:
            tensors = [model.tensor(key) for model in models]
            if base is not None and settings.method == "ties":
                tensor = ties(base.tensor(key), tensors, weights, settings.scale, thresholds)
            elif base is not None and settings.method == "varm":
                tensor = varm(base.tensor(key), tensors)
            elif base is not None and settings.method == "sce":
                tensor = sce(base.tensor(key), tensors, settings.density)
            elif base is not None:
                tensor = task_arithmetic(base.tensor(key), tensors, weights, settings.scale)
            elif settings.method == "slerp":
                tensor = slerp(tensors[0], tensors[1], weights[1] / sum(weights))
            else:
                tensor = linear(tensors, weights)
            dtype = getattr(torch, settings.dtype) if settings.dtype else first.dtype(key)
            tensor = tensor.to(dtype)
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"Merging {key} gives numbers that {dtype} cannot represent, or NaN; check "
                    "the models, or choose a wider dtype or a smaller scale."
                )
        else:
            tensor = first.raw(key)
            for model in models[1:]:
                if not torch.equal(tensor, model.raw(key)):
                    raise IncompatibleError(
                        f"Tensor {key} holds integers that differ between {first.name} and "
                        f"{model.name}, and integers cannot be averaged. {FUSE_INSTEAD}"
                    )
        yield key, tensor.contiguous()
        counter.add(prod(shape))


def _write_tensors(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]
) -> dict[torch.dtype, int]:
    """Write files with the names that save_pretrained gives; returns elements by dtype."""
    dtypes: dict[torch.dtype, int] = {}
    files: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    held_bytes = total_bytes = 0

    def write() -> None:
        save_file(held, folder / f"{len(files):05d}.part", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for key, tensor in tensors:
        if held and held_bytes + tensor.nbytes > MAX_FILE_BYTES:
            write()
            held_bytes = 0
        held[key] = tensor
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.numel()
    write()
    names = ["model.safetensors"]
    if len(files) > 1:
        count = len(files)
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": {
                key: name for name, keys in zip(names, files, strict=True) for key in keys
            },
        }
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_bytes(text.encode())
    for number, name in enumerate(names):
        (folder / f"{number:05d}.part").rename(folder / name)
    return dtypes
