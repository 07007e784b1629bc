"""Prints progress, tables, JSON and errors. Only results go to standard output."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from fusestore.progress import MeasuredProgress, Progress
from fusestore.storage.shown import plain, plain_json, without_secrets

from .tables import table_lines

if TYPE_CHECKING:
    from fusestore.report.learning_curves import LearningCurve, TokenSaving
    from fusestore.store.artifact_types import View

_LEAST_PLOT_WIDTH, _PLOT_WIDTH = 40, 80
_MARKER_STYLES = ("yellow", "cyan", "magenta", "green", "blue", "red")


class _PlainConsole(Console):
    """Prints names of strangers without control characters, and no secret of this process."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - as rich has it
        """Print texts; their styles come from here, never from what they say."""
        super().print(*map(_plain, objects), **options)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what rich prints
    if isinstance(value, str):
        return plain(without_secrets(value))
    if isinstance(value, Text) and plain(without_secrets(value.plain)) != value.plain:
        return Text(plain(without_secrets(value.plain)), style=value.style)
    return value


# Without markup, because paths and names may hold brackets and colons.
output = _PlainConsole(
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=True,
)
messages = _PlainConsole(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

_SECONDS_BETWEEN_LINES = 10.0

_SECONDS_BEFORE_ETA = 5.0
"""An estimate of what is left by the first steps alone is wrong by a multiple."""

_SECONDS_BEFORE_RATE = 1.0
"""The rate of a shorter stage is that of its start and end, not of its work."""

_SHARE_BEFORE_WORK = 0.05
"""Of the time: an earlier first report tells what was done before, by an interrupted run."""


class _Meter:
    """The rate of a stage, by the reports of its progress.

    What is left is estimated by the work since the first report, because loading comes before it.
    The rate that a stage ends with is that of its whole time.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.done, self.total = 0, 0
        self._first: tuple[float, int] | None = None

    def report(self, done: int, total: int) -> None:
        """Count what is done."""
        self.done, self.total = done, total
        if self._first is None:
            self._first = (time.monotonic(), done)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float | None:
        """Of the whole time; None where the stage was too short for one."""
        elapsed = self.elapsed
        if self._first is None or elapsed < _SECONDS_BEFORE_RATE:
            return None
        since, first = self._first
        before = first if since - self.began <= _SHARE_BEFORE_WORK * elapsed else 0
        return (self.done - before) / elapsed or None

    @property
    def recent_rate(self) -> float | None:
        """Since the first report; None before it means something."""
        if self._first is None:
            return None
        since, first = self._first
        seconds = time.monotonic() - since
        return (self.done - first) / seconds or None if seconds >= _SECONDS_BEFORE_ETA else None

    @property
    def remaining(self) -> str | None:
        """The time that is left; None before it means something."""
        rate = self.recent_rate
        return None if rate is None else _clock((self.total - self.done) / rate)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        meter: _Meter = task.fields["meter"]
        rate = meter.rate if task.finished else meter.recent_rate
        return Text("" if rate is None else f"{rate:,.0f} {task.fields['unit']}/s")


class _RemainingColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        meter: _Meter = task.fields["meter"]
        return Text("" if task.finished else meter.remaining or "", style="progress.remaining")


class ConsoleReporter:
    """Bars with rate and ETA on a terminal, else plain lines; both on standard error."""

    def line(self, text: str) -> None:
        """Print one line."""
        messages.print(Text(text))

    @contextlib.contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Progress]:
        """A long step."""
        with self.measured_stage(title, unit) as progress:
            yield lambda done, total: progress(done, total, "")

    @contextlib.contextmanager
    def measured_stage(self, title: str, unit: str) -> Iterator[MeasuredProgress]:
        """A long step; its line ends with what was measured."""
        title = plain(without_secrets(title), keep="")
        if messages.is_terminal:
            columns: Sequence[str | ProgressColumn] = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                _RemainingColumn(),
                TextColumn("{task.fields[measured]}", markup=False),
            )
            with RichProgress(*columns, console=messages) as bars:
                meter = _Meter()
                task = bars.add_task(title, total=None, unit=unit, measured="", meter=meter)

                def update(done: int, total: int, measured: str) -> None:
                    meter.report(done, total)
                    bars.update(task, completed=done, total=total, measured=measured)

                yield update
        else:
            yield _PlainLines(title, unit)


class _PlainLines:
    """One line at the start, at most one every ten seconds, one at the end."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.meter = _Meter()
        self.printed = self.meter.began
        self.finished = False
        messages.print(Text(f"{title} …"))

    def __call__(self, done: int, total: int, measured: str) -> None:
        meter, now = self.meter, time.monotonic()
        meter.report(done, total)
        complete = done >= total
        if self.finished or (not complete and now - self.printed < _SECONDS_BETWEEN_LINES):
            return
        self.printed, self.finished = now, complete
        share = 100 * done / total if total else 100
        parts = [f"{self.title}: {done:,}/{total:,} {self.unit} ({share:.0f} %)"]
        rate = meter.rate if complete else meter.recent_rate
        if rate is not None:
            parts.append(f"{rate:,.0f} {self.unit}/s")
        if complete:
            parts.append(f"in {_clock(meter.elapsed)}")
        elif meter.remaining is not None:
            parts.append(f"{meter.remaining} left")
        if measured:
            parts.append(measured)
        messages.print(Text(", ".join(parts)))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print a pydantic model, or any JSON value, as JSON on standard output."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    sys.stdout.write(plain_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output, as wide as the terminal at most; see `table_lines`."""
    if title:
        output.print(Text(title, style="bold"))
    rows = [[plain(cell) for cell in row] for row in rows]
    width = output.width if output.is_terminal else None
    for number, line in enumerate(table_lines(columns, rows, width)):
        output.print(Text(line, style="" if number else "dim"))


def print_curves(curves: Sequence[LearningCurve], savings: Sequence[TokenSaving]) -> None:
    """Print learning curves and what they say on standard output; nothing without curves."""
    if not curves:
        return
    from fusestore.report.text_plot import AXIS, MARKERS, text_plot

    width = min(_PLOT_WIDTH, max(_LEAST_PLOT_WIDTH, output.width))
    plot = text_plot({curve.title: curve.points for curve in curves}, width=width)
    styles = dict(zip(MARKERS, _MARKER_STYLES, strict=False))
    for line in plot.splitlines():
        text = Text(line)
        start = line.find(AXIS)
        for column in range(start, len(line)) if start >= 0 else ():
            if line[column] in styles:
                text.stylize(styles[line[column]], column, column + 1)
        output.print(text)
    for saving in savings:
        output.print(f"\n{saving.sentence}")


def print_view(view: View) -> None:
    """Print the tables of a view, and its note, on standard output."""
    for table in view.tables:
        print_table(*table)
    if view.note:
        output.print(view.note)
