"""How the windows of an optimizer step are divided over processes, batches and accumulation.

A step takes the next windows of the order, whoever reads them. So a run may be resumed by another
number of processes: the windows of its steps, their losses, and the weights stay the same, except
for rounding and for the random numbers of dropout.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from fusestore.errors import IncompatibleError
from fusestore.train.settings import TrainSettings


class Division(NamedTuple):
    """A step's windows are the product of these numbers.

    Attributes:
        batch_size: windows per process in one forward pass.
        gradient_accumulation: forward passes per step.
        world_size: processes.
    """

    batch_size: int
    gradient_accumulation: int
    world_size: int

    @classmethod
    def of(cls, settings: TrainSettings, world_size: int) -> Self:
        """The division by which this number of processes trains with these settings."""
        return cls(settings.batch_size, settings.gradient_accumulation, world_size)

    @property
    def windows(self) -> int:
        """Windows of a step."""
        return self.batch_size * self.gradient_accumulation * self.world_size

    def applied(self, settings: TrainSettings) -> TrainSettings:
        """Settings with this division."""
        changes = {
            "batch_size": self.batch_size,
            "gradient_accumulation": self.gradient_accumulation,
        }
        return settings.model_copy(update=changes)

    def __str__(self) -> str:
        return (
            f"{_processes(self.world_size)} with batch_size {self.batch_size} and "
            f"gradient_accumulation {self.gradient_accumulation}"
        )


def begun_division(begun: Division, now: Division) -> Division:
    """The division of a run that goes on.

    It is that with which the run began, if the settings are those of then, whatever the number of
    processes, or if others lead to the same windows a step. Otherwise it is another run.
    """
    same_settings = begun._replace(world_size=now.world_size) == now
    return begun if same_settings or begun.windows == now.windows else now


def divided_among(begun: Division, world_size: int, name: str) -> Division:
    """The same windows of a step for another number of processes.

    The batch is as large as possible, but no larger than that with which the run began, because
    its size is chosen by a device's memory; accumulation makes up for the rest.

    Args:
        begun: how the run began.
        world_size: processes now.
        name: of the run, for messages.

    Raises:
        IncompatibleError: the processes cannot have equal shares.
    """
    share, rest = divmod(begun.windows, world_size)
    if rest:
        possible = [n for n in range(1, begun.windows + 1) if begun.windows % n == 0]
        raise IncompatibleError(
            f"{name} was begun by {begun}: {begun.windows} windows a step, of which "
            f"{_processes(world_size)} cannot have equal shares. Resume it with "
            f"{', '.join(map(str, possible))} processes."
        )
    batch_size = max(n for n in range(1, begun.batch_size + 1) if share % n == 0)
    return Division(batch_size, share // batch_size, world_size)


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
