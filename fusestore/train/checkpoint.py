"""Checkpoints: everything an interrupted run needs to go on bit for bit.

A folder `checkpoint` with safetensors (weights, AdamW's moments, random states) and JSON
(counters, curves). It appears whole or not at all, and a newer one takes the place of the older.
Nothing in it is pickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    FormatVersionError,
    FusestoreError,
)
from fusestore.storage.manifest import Manifest
from fusestore.storage.publish import TEMPORARY_PREFIX, sync_folder
from fusestore.storage.urls import Location
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan

_FOLDER = "checkpoint"
_OLDER = f"{TEMPORARY_PREFIX}older-checkpoint"


class TrainState(Manifest):
    """Where a run stands.

    Attributes:
        plan: of the run; a checkpoint is only resumed under the same plan.
        step: optimizer steps done.
        num_tokens: target tokens that went through the model.
        loss_curve: one point per step done.
        evaluations: so far.
    """

    plan: TrainingPlan
    step: int = 0
    num_tokens: int = 0
    loss_curve: tuple[LossPoint, ...] = ()
    evaluations: tuple[EvaluationPoint, ...] = ()


def save_checkpoint(
    work_dir: Path,
    state: TrainState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parameter_names: Sequence[str],
) -> None:
    """Write the checkpoint and drop the one before.

    Args:
        work_dir: made if need be.
        state: counters and curves.
        model: its parameters and persistent buffers.
        optimizer: AdamW.
        parameter_names: of the optimizer's parameters, in its order.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    temporary = work_dir / f"{TEMPORARY_PREFIX}{_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _save_tensors(temporary / "model.safetensors", _unshared(model.state_dict()))
    moments = {
        f"{name}/{parameter_names[index]}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    _save_tensors(temporary / "optimizer.safetensors", moments)
    _save_tensors(temporary / "random.safetensors", _random_states())
    state_file = temporary / "state.json"
    state_file.write_bytes(state.to_bytes())
    _sync_file(state_file)
    sync_folder(temporary)
    # A folder cannot replace a full one in one step; a reader falls back to the older one.
    current, older = work_dir / _FOLDER, work_dir / _OLDER
    if current.exists():
        shutil.rmtree(older, ignore_errors=True)
        current.rename(older)
    temporary.rename(current)
    sync_folder(work_dir)
    shutil.rmtree(older, ignore_errors=True)


def load_state(work_dir: Path, plan: TrainingPlan) -> TrainState | None:
    """The counters of the checkpoint in `work_dir`; None when there is none.

    Raises:
        FingerprintMismatchError: it belongs to another plan; both are shown.
        FormatVersionError: a newer fusestore wrote it.
        CorruptionError: it cannot be read.
    """
    folder = _folder(work_dir)
    if folder is None:
        return None
    try:
        state = TrainState.load(Location.parse(folder / "state.json"))
    except FormatVersionError:
        raise
    except FusestoreError as error:
        raise CorruptionError(
            f"Checkpoint {folder} cannot be read ({error}). Delete {work_dir} to start over."
        ) from error
    if not state.plan.leads_where(plan):
        before, now = state.plan.model_dump(mode="json"), plan.model_dump(mode="json")
        raise FingerprintMismatchError(
            f"{work_dir} holds a checkpoint of another run ({_differences(before, now)}). Give the "
            "same settings to resume it, another work folder, or delete this one to start over."
        )
    return state.model_copy(update={"plan": plan})


def restore(
    work_dir: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parameter_names: Sequence[str],
) -> None:
    """Put weights, optimizer and random states back as `save_checkpoint` found them.

    Raises:
        CorruptionError: files are missing, cut, or of another model.
    """
    folder = _folder(work_dir)
    try:
        if folder is None:
            raise FileNotFoundError(f"no checkpoint in {work_dir}")
        weights = load_file(folder / "model.safetensors")
        # Not strict: the other names of tied weights are not in the file.
        names = _unshared(model.state_dict())
        model.load_state_dict({name: weights[name] for name in names}, strict=False)
        moments = load_file(folder / "optimizer.safetensors")
        content: dict[str, Any] = optimizer.state_dict()
        content["state"] = {
            index: {
                moment: moments[f"{moment}/{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")
            }
            for index, name in enumerate(parameter_names)
        }
        optimizer.load_state_dict(content)
        _set_random_states(load_file(folder / "random.safetensors"))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CorruptionError(
            f"The checkpoint in {work_dir} cannot be read ({error}). "
            f"Delete {work_dir} to start over."
        ) from error


def delete_checkpoint(work_dir: Path) -> None:
    """Remove what `save_checkpoint` left, and the folder itself when it is then empty."""
    for name in (_FOLDER, _OLDER, f"{TEMPORARY_PREFIX}{_FOLDER}"):
        shutil.rmtree(work_dir / name, ignore_errors=True)
    if work_dir.is_dir() and not any(work_dir.iterdir()):
        work_dir.rmdir()


def _folder(work_dir: Path) -> Path | None:
    for name in (_FOLDER, _OLDER):
        if (work_dir / name).is_dir():
            return work_dir / name
    return None


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor: tied weights (input and output embeddings) are kept once."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _sync_file(path)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda/{index}"] = state
    return states


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda/") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    flat_before = {**before, **before["settings"]}
    flat_now = {**now, **now["settings"]}
    return ", ".join(
        f"{name}: {flat_before[name]!r} there, {flat_now[name]!r} here"
        for name in flat_now
        if name != "settings" and flat_before.get(name) != flat_now[name]
    )
