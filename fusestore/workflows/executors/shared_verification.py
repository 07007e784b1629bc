"""`verify_by_workers`: checks a store by several processes of this machine.

Checking writes nothing, so there is nothing to lease: each worker checks its share of the
artifacts, by rank, and prints the result. What a worker that died was to check is checked here.
"""

from __future__ import annotations

from itertools import chain, zip_longest

from pydantic import ValidationError

from fusestore.process_rank import Rank
from fusestore.progress import Reporter, ignore_progress
from fusestore.store.layout import Store
from fusestore.workflows.executors.local import run_workers
from fusestore.workflows.executors.outcome import Outcome
from fusestore.workflows.verification import Verification, verify_inputs_too

_FOUND_DAMAGE = 1


def verify_by_workers(
    store: Store,
    arguments: tuple[str, ...],
    reporter: Reporter,
    *,
    path: str | None = None,
    quick: bool = False,
    workers: int = 2,
    cores: int | None = None,
) -> Verification:
    """Check one artifact or all artifacts of a store; the result is that of one process.

    Args:
        store: the store.
        arguments: the command line of `fusestore verify`, with `--share` and `--json`.
        reporter: receives a line about each worker that ends early.
        path: as for `verify_store`.
        quick: as for `verify_store`.
        workers: number of processes.
        cores: threads of each; by default the cores of this machine, divided.
    """
    outcomes = run_workers(
        arguments,
        workers,
        reporter,
        lambda: ignore_progress(0, 0),
        cores=cores,
        expected=(0, _FOUND_DAMAGE),
    )
    shares = []
    for outcome in outcomes:
        share = _parsed(outcome)
        if share is None:
            rank = Rank(outcome.worker, workers)
            share = verify_inputs_too(store, path, quick=quick, share=rank)
        shares.append(share.artifacts)
    in_turns = chain.from_iterable(zip_longest(*shares))
    return Verification(
        store=str(store.location),
        quick=quick,
        artifacts=tuple(artifact for artifact in in_turns if artifact is not None),
    )


def _parsed(outcome: Outcome) -> Verification | None:
    try:
        return Verification.model_validate_json(outcome.printed)
    except ValidationError:
        return None
