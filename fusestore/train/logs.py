"""TensorBoard logs of a run: each step and evaluation once, however often it was resumed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, MissingDependencyError
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.location import Location
from fusestore.storage.replace import replaced_file
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import EvaluationPoint, LossPoint

_STEP, _HELD_OUT = "train/", "held_out/"


def check_log_folder(folder: Path, protected: Location) -> None:
    """Check that logs, which hold times and host names, stay outside a store or model folder.

    Raises:
        InvalidInputError: the folder lies in it.
    """
    if protected.is_local and folder.resolve().is_relative_to(protected.path.resolve()):
        raise InvalidInputError(
            f"log_dir {folder} lies in {protected}, where every byte is accounted for; logs hold "
            "times and host names. Give a folder outside of it."
        )


class TensorBoardLog:
    """Writes the scalars of every step and evaluation.

    A resumed run repeats the steps after its checkpoint. Their events are first removed from the
    files of this run, which have the plan's digest in their names. So the files hold what those of
    an uninterrupted run hold, except for the times.
    """

    def __init__(self, folder: Path, state: TrainState) -> None:
        """Open the log of a run that continues from `state`.

        Raises:
            MissingDependencyError: the package tensorboard is not installed.
            AccessDeniedError, StorageError: the disk is full, read-only or broken.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard logs need the package tensorboard: pip install "
                f"'fusestore[tensorboard]', or do not set log_dir ({error})."
            ) from error
        suffix = f".fusestore-{state.plan.digest[:16]}"
        self._folder = folder
        with self._disk_errors():
            for file in sorted(folder.glob(f"*tfevents*{suffix}")):
                _remove_events_after(file, state)
            self._writer: Any = SummaryWriter(
                folder,
                # A running TensorBoard may have read events that were removed from the files.
                purge_step=state.step + 1 if state.step else None,
                filename_suffix=suffix,
                flush_secs=10,
            )

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        # The thread that writes passes its errors to the next call.
        return disk_errors(self._folder, "TensorBoard logs")

    def step(self, point: LossPoint, num_tokens: int) -> None:
        """Log an optimizer step and its number of target tokens."""
        values = {**point.model_dump(exclude={"step"}), "tokens": num_tokens}
        with self._disk_errors():
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{_STEP}{name}", value, point.step)

    def evaluation(self, point: EvaluationPoint) -> None:
        """Log an evaluation."""
        with self._disk_errors():
            for name, value in point.metrics.items():
                self._writer.add_scalar(f"{_HELD_OUT}{name}", value, point.step)

    def close(self) -> None:
        """Flush and close the files."""
        with self._disk_errors():
            self._writer.close()


@contextlib.contextmanager
def run_log(folder: Path | None, state: TrainState) -> Iterator[TensorBoardLog | None]:
    """The log, closed at the end; None without a folder."""
    if folder is None:
        yield None
        return
    with contextlib.closing(TensorBoardLog(folder, state)) as log:
        yield log


def _remove_events_after(file: Path, state: TrainState) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    evaluated = {point.step for point in state.evaluations}
    kept = io.BytesIO()
    records = RecordWriter(kept)
    # A killed process may leave half a record, at which the loader stops.
    for content in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(content)
        held_out = any(value.tag.startswith(_HELD_OUT) for value in event.summary.value)
        if event.step in evaluated if held_out else event.step <= state.step:
            records.write(content)
    with replaced_file(file) as temporary:
        temporary.write_bytes(kept.getvalue())
