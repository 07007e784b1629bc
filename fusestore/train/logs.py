"""TensorBoard logs of a run: every step and every evaluation once, however often it was resumed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, MissingDependencyError
from fusestore.storage.location import Location
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import EvaluationPoint, LossPoint

_STEP, _HELD_OUT = "train/", "held_out/"


def check_log_folder(folder: Path, place: Location) -> None:
    """See that logs, which have times and host names in them, stay out of a store or model.

    Raises:
        InvalidInputError: the folder lies in it.
    """
    if place.is_local and folder.resolve().is_relative_to(place.path.resolve()):
        raise InvalidInputError(
            f"log_dir {folder} lies in {place}, where every byte is accounted for; logs hold times "
            "and host names. Give a folder outside of it."
        )


class TensorBoardLog:
    """Writes scalars as they come.

    An interrupted run goes on from its checkpoint, and what was logged after that is taken out of
    the files of this run (the plan's digest is in their names) before anything is added: a reader
    of the files sees what one of an uninterrupted run sees, but for the times.
    """

    def __init__(self, folder: Path, state: TrainState) -> None:
        """Open the log of the run that stands at `state`.

        Raises:
            MissingDependencyError: the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard logs need the package tensorboard: pip install "
                f"'fusestore[tensorboard]', or leave log_dir out ({error})."
            ) from error
        suffix = f".fusestore-{state.plan.digest[:16]}"
        for file in sorted(folder.glob(f"*tfevents*{suffix}")):
            _take_out_what_comes_after(file, state)
        self._writer: Any = SummaryWriter(
            folder,
            # For a TensorBoard that is running and has read more than the files hold now.
            purge_step=state.step + 1 if state.step else None,
            filename_suffix=suffix,
            flush_secs=10,
        )

    def step(self, point: LossPoint, num_tokens: int) -> None:
        """Log an optimizer step and its number of target tokens."""
        values = {**point.model_dump(exclude={"step"}), "tokens": num_tokens}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{_STEP}{name}", value, point.step)

    def evaluation(self, point: EvaluationPoint) -> None:
        """Log an evaluation."""
        for name, value in point.metrics.items():
            self._writer.add_scalar(f"{_HELD_OUT}{name}", value, point.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


@contextlib.contextmanager
def run_log(folder: Path | None, state: TrainState) -> Iterator[TensorBoardLog | None]:
    """The log, if one is wanted, closed in the end."""
    if folder is None:
        yield None
        return
    with contextlib.closing(TensorBoardLog(folder, state)) as log:
        yield log


def _take_out_what_comes_after(file: Path, state: TrainState) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    evaluated = {point.step for point in state.evaluations}
    kept = io.BytesIO()
    records = RecordWriter(kept)
    # A process that was killed leaves half a record, at which the loader ends.
    for content in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(content)
        held_out = any(value.tag.startswith(_HELD_OUT) for value in event.summary.value)
        if event.step in evaluated if held_out else event.step <= state.step:
            records.write(content)
    temporary = file.with_name(f".{file.name.replace('tfevents', 'tmp')}")
    temporary.write_bytes(kept.getvalue())
    temporary.replace(file)
