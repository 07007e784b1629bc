"""`--executor`: hands a command to several workers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from fusestore.workflows.executors.settings import ExecutorSettings

from .console import ConsoleReporter
from .field_options import setting_options

if TYPE_CHECKING:
    from fusestore.storage.location import Location
    from fusestore.store.layout import Store
    from fusestore.workflows.verification import Verification


def hand_out(settings: ExecutorSettings, kind: str, folder: Location) -> bool:
    """Have an executor's workers complete the artifact that this command makes.

    Ends the command if there is nothing more to do here: with `slurm` the script is written.

    Returns:
        Whether workers made the artifact; False without an executor, or if it was complete before.
    """
    if settings.name is None:
        return False
    from fusestore.workflows.executors.run import execute
    from fusestore.workflows.executors.shared_job import Job

    job = Job(without_options(sys.argv[1:]), kind, folder)
    was_complete = job.is_complete()
    if not execute(job, settings, ConsoleReporter()):
        raise typer.Exit
    return not was_complete


def verify_by_executor(
    store: Store, path: str | None, quick: bool, settings: ExecutorSettings
) -> Verification:
    """Have an executor's workers check a store; ends the command if there is no result here."""
    from fusestore.workflows.executors.run import write_script
    from fusestore.workflows.executors.shared_job import Job
    from fusestore.workflows.executors.shared_verification import verify_by_workers

    reporter = ConsoleReporter()
    arguments = (*without_options(sys.argv[1:]), "--share")
    if settings.name == "slurm":
        write_script(Job(arguments, "store", store.location), settings, reporter)
        raise typer.Exit
    if settings.name == "ray":
        raise typer.BadParameter(
            "ray makes shards; verify checks a store with local or slurm", param_hint="--executor"
        )
    return verify_by_workers(
        store,
        arguments if "--json" in arguments else (*arguments, "--json"),
        reporter,
        path=path,
        quick=quick,
        workers=settings.num_workers or 2,
        cores=settings.worker_cpus,
    )


def without_options(arguments: Sequence[str]) -> tuple[str, ...]:
    """A command line without the options of `ExecutorSettings`."""
    flags: set[str] = set()
    with_value: set[str] = set()
    for option in setting_options(ExecutorSettings):
        (flags if option.annotation is bool else with_value).update(option.flags)
    kept: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name = argument.partition("=")[0]
        if argument in with_value:
            next(remaining, None)
        elif (
            name in with_value
            or argument in flags
            or any(len(flag) == 2 and argument.startswith(flag) for flag in with_value)
        ):
            continue
        else:
            kept.append(argument)
    return tuple(kept)
