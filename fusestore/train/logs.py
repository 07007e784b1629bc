"""TensorBoard logs of a run: each step and evaluation once, however often it was resumed."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusestore.errors import InvalidInputError, MissingDependencyError
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.location import Location
from fusestore.storage.replace import replaced_file
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import EvaluationPoint, LossPoint

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_STEP, _HELD_OUT = "train/", "held_out/"
_OPENED = itertools.count()
"""Numbers the files of this process: several may begin in one second."""


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
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard logs need the package tensorboard: pip install "
                f"'fusestore[tensorboard]', or do not set log_dir ({error})."
            ) from error
        self._folder = folder
        suffix = f".fusestore-{state.plan.digest[:16]}"
        with self._disk_errors():
            for file in sorted(folder.glob(f"*tfevents*{suffix}")):
                _remove_events_after(file, state)
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names.
            where = f"{socket.gethostname()}.{os.getpid()}.{next(_OPENED)}"
            name = f"events.out.tfevents.{int(time.time()):010d}.{where}{suffix}"
            # Its own writer has a thread, which prints a traceback if the disk is full.
            self._records = RecordWriter((folder / name).open("xb"))
        self._write(Event(file_version="brain.Event:2"))
        if state.step:
            # A running TensorBoard may have read events that were removed from the files.
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(step=state.step + 1, session_log=restart))

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._folder, "TensorBoard logs")

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._disk_errors():
            self._records.write(event.SerializeToString())
            self._records.flush()

    def _write_scalars(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=f"{prefix}{name}", simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def step(self, point: LossPoint, num_tokens: int) -> None:
        """Log an optimizer step and its number of target tokens."""
        values = {**point.model_dump(exclude={"step"}), "tokens": num_tokens}
        self._write_scalars(_STEP, values, point.step)

    def evaluation(self, point: EvaluationPoint) -> None:
        """Log an evaluation."""
        self._write_scalars(_HELD_OUT, point.metrics, point.step)

    def close(self) -> None:
        """Close the file."""
        with self._disk_errors():
            self._records.close()


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
