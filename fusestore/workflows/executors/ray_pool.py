"""`run_on_ray`: workers that are actors of a Ray cluster.

An actor is thin: it runs the command in a process of its own, which loads the model once, takes
shards by the leases in the store and writes shards and receipts there. What comes back is how the
command ended; the receipts in the store say what is finished. An actor that is lost with its node
is not started again: the others take over its shards when its leases expire.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusestore.errors import EngineError, MissingDependencyError
from fusestore.progress import Progress, Reporter
from fusestore.storage.replace import scratch_folder
from fusestore.workflows.executors.local import report_rows, sigterm_interrupts
from fusestore.workflows.executors.outcome import Outcome, check_outcomes, outcome_of
from fusestore.workflows.executors.shared_job import Job
from fusestore.workflows.executors.worker_process import (
    place_of_worker,
    start_worker,
    threads_of_worker,
)

_PASSED_ON = ("AWS_", "FUSESTORE_", "HF_")
"""Prefixes of the driver's variables that workers get; a node has an environment of its own."""

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_END = 10.0


class RayWorker:
    """One worker; an instance is an actor."""

    def run(
        self,
        worker: int,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        folder: str,
    ) -> Outcome:
        """Run the command on this node until the artifact is complete.

        Args:
            worker: its number.
            arguments: the command line after `fusestore`.
            environment: variables for the command.
            folder: the driver's working folder, which relative paths of the command begin at.
        """
        if Path(folder).is_dir():
            os.chdir(folder)
        with scratch_folder("worker") as logs:
            file = logs / str(worker)
            # The pipe to its standard input closes when this actor dies, and the command ends.
            process = start_worker(arguments, environment, file)
            process.wait()
            return outcome_of(worker, process.returncode, file)


def run_on_ray(
    job: Job,
    reporter: Reporter,
    *,
    address: str | None = None,
    workers: int | None = None,
    cpus: int = 1,
    gpus: float = 0,
) -> None:
    """Complete an artifact by the actors of a Ray cluster.

    Args:
        job: the command and its artifact, in a store that every node reaches under this name.
        reporter: receives one progress, of all workers together.
        address: of the cluster; by default what `ray.init` finds, or a cluster of this machine.
        workers: number of actors; by default the number of nodes.
        cpus: cores that each reserves, and the threads it has.
        gpus: GPUs that each reserves.

    Raises:
        MissingDependencyError: Ray is not installed.
        EngineError: there is no such cluster, or every worker failed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingDependencyError(
            "--executor ray needs the package ray, here and on every node: "
            "pip install 'fusestore[ray]'."
        ) from error
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(f"No Ray cluster at {address}: {error}") from error
    try:
        workers = workers or sum(bool(node["Alive"]) for node in ray.nodes())
        with (
            sigterm_interrupts(),
            reporter.stage(f"{job.title} by {workers} workers", "rows") as progress,
        ):
            outcomes = _run(ray, job, reporter, progress, workers, cpus, gpus)
    finally:
        if not was_connected:
            ray.shutdown()
    check_outcomes(job, outcomes)


def _run(
    ray: Any,  # noqa: ANN401 - a module
    job: Job,
    reporter: Reporter,
    progress: Progress,
    workers: int,
    cpus: int,
    gpus: float,
) -> list[Outcome]:
    actor_class = ray.remote(
        num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
    )(RayWorker)
    passed_on = {key: text for key, text in os.environ.items() if key.startswith(_PASSED_ON)}
    actors = [actor_class.remote() for _ in range(workers)]
    pending = {}
    for worker, actor in enumerate(actors):
        # Ray shows an actor only its own GPUs, so each takes the first.
        place = place_of_worker(worker, workers, 0)
        environment = {**passed_on, **threads_of_worker(cpus), **place}
        pending[actor.run.remote(worker, job.arguments, environment, str(Path.cwd()))] = worker
    outcomes: dict[int, Outcome] = {}
    try:
        # One that succeeds has seen the artifact complete; an actor may wait for a place till then.
        while pending and not (job.is_complete() and any(not o.failed for o in outcomes.values())):
            ready, _ = ray.wait(list(pending), timeout=_SECONDS_BETWEEN_LOOKS)
            for reference in ready:
                worker = pending.pop(reference)
                outcomes[worker] = outcome = _outcome(ray, reference, worker)
                if outcome.failed:
                    reporter.line(f"Worker {worker} of {workers} {outcome.describe()}")
            report_rows(job, progress)
        # The last clean up; those that wait for a place in the cluster need none any more.
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=_SECONDS_TO_END)
    finally:
        for actor in actors:
            ray.kill(actor)
    return list(outcomes.values())


def _outcome(ray: Any, reference: Any, worker: int) -> Outcome:  # noqa: ANN401 - Ray's
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(worker, None, str(error).splitlines()[0])
    return outcome
