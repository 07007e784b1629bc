"""Checkpoints: everything that an interrupted run needs to resume with the same bits.

A folder `checkpoint` with safetensors (weights, optimizer state) and JSON (counters, curves),
gathered from all processes, so another number of them may resume it. A newer checkpoint replaces it
whole. Beside it are the best weights so far, where `settings.result` is `best`. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
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
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.location import Location
from fusestore.storage.publish import TEMPORARY_PREFIX
from fusestore.storage.replace import (
    remove_replaced,
    replaced_file,
    replaced_folder,
    whole_folder,
)
from fusestore.store.manifest import Manifest
from fusestore.train.distributed.collectives import tensors_of_main_process
from fusestore.train.distributed.engine import Engine
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan
from fusestore.train.student.model_folder import load_weights

_FOLDER = "checkpoint"
_STATE = "state.json"
_WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_BEST = "best"


class TrainState(Manifest):
    """The counters and curves of a run.

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
    optimizer_state: Mapping[str, Tensor],
) -> None:
    """Write the checkpoint; it replaces the previous one.

    Args:
        work_dir: created if it does not exist.
        state: counters and curves.
        weights: see `trained_weights`; gathered.
        optimizer_state: see `Engine.optimizer_state`.

    Raises:
        AccessDeniedError, StorageError: the disk is full or read-only; the previous one is kept.
    """
    with replaced_folder(work_dir / _FOLDER) as folder:
        _save_tensors(folder / _WEIGHTS, weights)
        _save_tensors(folder / _OPTIMIZER, optimizer_state)
        (folder / _STATE).write_bytes(state.to_bytes())


def stored_state(work_dir: Path) -> TrainState | None:
    """The counters of the checkpoint in `work_dir`, whatever its plan; None when there is none.

    Raises:
        FormatVersionError: a newer fusestore wrote it.
        CorruptionError: it cannot be read.
    """
    folder = whole_folder(work_dir / _FOLDER)
    if folder is None:
        return None
    try:
        return TrainState.load(Location.parse(folder / _STATE))
    except FormatVersionError:
        raise
    except FusestoreError as error:
        raise CorruptionError(
            f"Checkpoint {folder} cannot be read ({error}). Delete {work_dir} to start over."
        ) from error


def resumed_state(state: TrainState, plan: TrainingPlan, work_dir: Path) -> TrainState:
    """The counters of a checkpoint under the plan of this run, which ends with the same model.

    Raises:
        FingerprintMismatchError: it belongs to another plan; both are shown.
    """
    if not state.plan.same_result(plan):
        raise FingerprintMismatchError(
            f"{work_dir} holds a checkpoint of another run ({_differences(state.plan, plan)}). "
            "Give the same settings to resume it, another work folder, or delete this one to start "
            "over."
        )
    return state.model_copy(update={"plan": plan})


def restore_weights(accelerator: Any, work_dir: Path, model: torch.nn.Module) -> None:  # noqa: ANN401
    """Load the checkpoint's weights, which the main process reads, into a model before sharding.

    Raises:
        CorruptionError: files are missing, cut, or of another model.
        FusestoreError: likewise, in the other processes.
    """
    weights = tensors_of_main_process(accelerator, lambda: _load(work_dir, _WEIGHTS))
    with _readable(work_dir):
        load_weights(model, weights)


def restore_optimizer(accelerator: Any, work_dir: Path, engine: Engine) -> None:  # noqa: ANN401
    """Load the checkpoint's optimizer state, which the main process reads.

    Raises:
        CorruptionError: files are missing, cut, or of another model.
        FusestoreError: likewise, in the other processes.
    """
    tensors = tensors_of_main_process(accelerator, lambda: _load(work_dir, _OPTIMIZER))
    with _readable(work_dir):
        engine.load_optimizer_state(tensors)


def _load(work_dir: Path, name: str) -> dict[str, Tensor]:
    with _readable(work_dir):
        folder = whole_folder(work_dir / _FOLDER)
        if folder is None:
            raise FileNotFoundError(f"no checkpoint in {work_dir}")
        return load_file(folder / name)


@contextlib.contextmanager
def _readable(work_dir: Path) -> Iterator[None]:
    """Turn an error of the body into a CorruptionError."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(work_dir, error) from error


def save_best(work_dir: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep the best weights so far, beside those of earlier steps; see `drop_best_except`.

    Raises:
        AccessDeniedError, StorageError: the disk is full or read-only.
    """
    with disk_errors(work_dir, "The best weights"):
        work_dir.mkdir(parents=True, exist_ok=True)
        with replaced_file(_best_file(work_dir, step)) as temporary:
            _save_tensors(temporary, weights)


def load_best(work_dir: Path, step: int) -> dict[str, Tensor]:
    """The weights that `save_best` wrote after a step.

    Raises:
        CorruptionError: the file is missing or damaged.
    """
    try:
        return load_file(_best_file(work_dir, step))
    except (OSError, SafetensorError) as error:
        raise _damaged(work_dir, error) from error


def drop_best_except(work_dir: Path, steps: AbstractSet[int]) -> None:
    """Delete the best weights of all steps but these.

    A resumed run repeats the steps after its checkpoint, and needs the weights that were the best
    at the checkpoint: so `steps` contains that step.
    """
    kept = {_best_file(work_dir, step) for step in steps}
    with disk_errors(work_dir, "The list of best weights"):
        for file in work_dir.glob(f"{_BEST}-*.safetensors"):
            if file not in kept:
                remove_replaced(file)


def delete_checkpoint(work_dir: Path) -> None:
    """Delete the checkpoint and the best weights, and the folder itself if it is then empty."""
    with disk_errors(work_dir, "The end of the run"):
        remove_replaced(work_dir / _FOLDER)
        drop_best_except(work_dir, set())
        for leftover in work_dir.glob(f"{TEMPORARY_PREFIX}*"):
            remove_replaced(leftover)
        if work_dir.is_dir() and not any(work_dir.iterdir()):
            work_dir.rmdir()


def _best_file(work_dir: Path, step: int) -> Path:
    return work_dir / f"{_BEST}-{step}.safetensors"


def _damaged(work_dir: Path, error: Exception) -> CorruptionError:
    return CorruptionError(
        f"The checkpoint in {work_dir} cannot be read ({error}). Delete {work_dir} to start over."
    )


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _differences(before: TrainingPlan, now: TrainingPlan) -> str:
    fields_before, fields_now = _result_fields(before), _result_fields(now)
    return ", ".join(
        f"{name}: {fields_before.get(name)!r} in the checkpoint, {fields_now.get(name)!r} now"
        for name in {**fields_before, **fields_now}
        if fields_before.get(name) != fields_now.get(name)
    )


def _result_fields(plan: TrainingPlan) -> dict[str, Any]:
    """What decides the result, by name."""
    fields = plan.model_dump(mode="json")
    fields.update(fields.pop("settings"))
    for name in ("batch_size", "gradient_accumulation", "world_size", "loss_spike"):
        del fields[name]
    windows = "windows of a step (batch_size · gradient_accumulation · processes)"
    return {windows: plan.windows_per_step, **fields}
