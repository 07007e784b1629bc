"""Checkpoints: everything an interrupted run needs to go on bit for bit.

A folder `checkpoint` with safetensors (weights, AdamW's moments, random states) and JSON
(counters, curves). It appears whole or not at all, and a newer one takes the place of the older.
Beside it lie the best weights so far, where they are wanted. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
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
from fusestore.storage.location import Location
from fusestore.storage.publish import TEMPORARY_PREFIX, sync_folder
from fusestore.store.manifest import Manifest
from fusestore.train.distributed.engine import Engine
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan
from fusestore.train.trained_weights import put_weights

_FOLDER = "checkpoint"
_WEIGHTS = "model.safetensors"
_MOMENTS = "optimizer.safetensors"
_BEST = "best"
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
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    """Write the checkpoint and drop the one before.

    Args:
        work_dir: made if need be.
        state: counters and curves.
        weights: as `fusestore.train.trained_weights` gives them.
        moments: as the engine gives them.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    temporary = work_dir / f"{TEMPORARY_PREFIX}{_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_tensors(temporary / _WEIGHTS, weights)
    save_tensors(temporary / _MOMENTS, moments)
    save_tensors(temporary / "random.safetensors", _random_states())
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


def stored_state(work_dir: Path) -> TrainState | None:
    """The counters of the checkpoint in `work_dir`, whatever its plan; None when there is none.

    Raises:
        FormatVersionError: a newer fusestore wrote it.
        CorruptionError: it cannot be read.
    """
    folder = _folder(work_dir)
    if folder is None:
        return None
    try:
        return TrainState.load(Location.parse(folder / "state.json"))
    except FormatVersionError:
        raise
    except FusestoreError as error:
        raise CorruptionError(
            f"Checkpoint {folder} cannot be read ({error}). Delete {work_dir} to start over."
        ) from error


def load_state(work_dir: Path, plan: TrainingPlan) -> TrainState | None:
    """The counters of the checkpoint in `work_dir`; None when there is none.

    Raises:
        FingerprintMismatchError: it belongs to another plan; both are shown.
        FormatVersionError, CorruptionError: see `stored_state`.
    """
    state = stored_state(work_dir)
    if state is None:
        return None
    if not state.plan.leads_where(plan):
        before, now = state.plan.model_dump(mode="json"), plan.model_dump(mode="json")
        raise FingerprintMismatchError(
            f"{work_dir} holds a checkpoint of another run ({_differences(before, now)}). Give the "
            "same settings to resume it, another work folder, or delete this one to start over."
        )
    return state.model_copy(update={"plan": plan})


def restore_weights(work_dir: Path, model: torch.nn.Module) -> None:
    """Put weights back as `save_checkpoint` found them, in a model that is not cut in pieces.

    Raises:
        CorruptionError: files are missing, cut, or of another model.
    """
    with _readable(work_dir) as folder:
        put_weights(model, load_file(folder / _WEIGHTS))


def restore_moments(work_dir: Path, engine: Engine) -> None:
    """Put optimizer and random states back as `save_checkpoint` found them.

    Raises:
        CorruptionError: files are missing, cut, or of another model.
    """
    with _readable(work_dir) as folder:
        engine.put_moments(load_file(folder / _MOMENTS))
        _set_random_states(load_file(folder / "random.safetensors"))


@contextlib.contextmanager
def _readable(work_dir: Path) -> Iterator[Path]:
    """The checkpoint's folder; what reading it raises is damage."""
    folder = _folder(work_dir)
    try:
        if folder is None:
            raise FileNotFoundError(f"no checkpoint in {work_dir}")
        yield folder
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(work_dir, error) from error


def save_best(work_dir: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep the best weights so far, beside those of steps before; see `drop_best_but`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    temporary = work_dir / f"{TEMPORARY_PREFIX}{_BEST}"
    save_tensors(temporary, weights)
    temporary.replace(_best_file(work_dir, step))
    sync_folder(work_dir)


def load_best(work_dir: Path, step: int) -> dict[str, Tensor]:
    """What `save_best` wrote after a step.

    Raises:
        CorruptionError: the file is missing or damaged.
    """
    try:
        return load_file(_best_file(work_dir, step))
    except (OSError, SafetensorError) as error:
        raise _damaged(work_dir, error) from error


def drop_best_but(work_dir: Path, steps: AbstractSet[int]) -> None:
    """Drop the best weights of all other steps.

    A run that is resumed makes the steps since its checkpoint again, and what was the best then
    must still be there: so the checkpoint's best is among `steps`.
    """
    kept = {_best_file(work_dir, step) for step in steps}
    for file in work_dir.glob(f"{_BEST}-*.safetensors"):
        if file not in kept:
            file.unlink()


def delete_checkpoint(work_dir: Path) -> None:
    """Remove what was kept here, and the folder itself when it is then empty."""
    for name in (_FOLDER, _OLDER, f"{TEMPORARY_PREFIX}{_FOLDER}"):
        shutil.rmtree(work_dir / name, ignore_errors=True)
    (work_dir / f"{TEMPORARY_PREFIX}{_BEST}").unlink(missing_ok=True)
    drop_best_but(work_dir, set())
    if work_dir.is_dir() and not any(work_dir.iterdir()):
        work_dir.rmdir()


def _best_file(work_dir: Path, step: int) -> Path:
    return work_dir / f"{_BEST}-{step}.safetensors"


def _damaged(work_dir: Path, error: Exception) -> CorruptionError:
    return CorruptionError(
        f"The checkpoint in {work_dir} cannot be read ({error}). Delete {work_dir} to start over."
    )


def _folder(work_dir: Path) -> Path | None:
    for name in (_FOLDER, _OLDER):
        if (work_dir / name).is_dir():
            return work_dir / name
    return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that survives a power cut."""
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
        f"{name}: {flat_before.get(name)!r} there, {flat_now.get(name)!r} here"
        for name in {**flat_before, **flat_now}
        if name != "settings" and flat_before.get(name) != flat_now.get(name)
    )
