"""Materializing: making every missing shard of a fused dataset, by one process or several.

A killed run resumes where it stopped, and several runs at once, on one machine or many, divide
the shards by leases (`fusestore.store.leases`). Locks (`fusestore.fuse.locks`) keep a process that
reads the dataset meanwhile from making a shard twice. Memory per process depends on the shard's
rows, on k and on the length of the documents and windows a shard touches, not on the corpus.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from fusestore.errors import InvalidInputError, StorageError
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.locks import remove_locks
from fusestore.fuse.manifest import FusedManifest
from fusestore.plugins import expect_plugins, plugin_names
from fusestore.progress import Progress, ignore_progress
from fusestore.store.leases import LEASE_FOLDER, remove_leases, share_shards


def materialize(
    folder: FusedFolder, *, jobs: int = 1, progress: Progress = ignore_progress
) -> FusedManifest:
    """Make the missing shards of a fused dataset, then its manifest.

    Args:
        folder: the fused dataset.
        jobs: processes that make shards. Several are spawned, so a script that uses them needs the
            usual `if __name__ == "__main__":`.
        progress: receives the target tokens done: first those of finished shards, then after every
            shard.

    Raises:
        FingerprintMismatchError: the folder holds a fused dataset made from something else.
        CorruptionError: an input is damaged.
        StorageError: a process was killed.
        InvalidInputError: `jobs` is below 1.
        In each case finished shards stay, and the same call resumes.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}; expected 1 or more processes.")
    folder.begin()
    manifest = folder.manifest()
    if manifest is not None:
        # A writer that died after writing the manifest left its leases and locks.
        remove_leases(folder.location / LEASE_FOLDER)
        remove_locks(folder.location)
        return manifest
    num_rows = folder.fusion.num_tokens
    bounds = map(folder.arrays[0].rows_of, range(folder.num_shards))
    sizes = [stop - start for start, stop in bounds]
    made: set[int] = set()
    reported = -1

    def report() -> None:
        nonlocal reported
        done = sum(sizes[shard] for shard in made)
        if done > reported:
            progress(done, num_rows)
        reported = done

    def finished() -> set[int]:
        # Shards of other writers count as progress too.
        made.update(folder.finished())
        return made

    finished()
    report()
    with share_shards(folder.location, finished, folder.num_shards) as shards:
        for shard in _make_shards(folder, shards, min(jobs, folder.num_shards - len(made))):
            made.add(shard)
            report()
    report()
    # A shard that was listed as finished may belong to another plan, or have lost a file since.
    manifest = folder.to_manifest() or folder.make_missing()
    folder.save(manifest)
    remove_leases(folder.location / LEASE_FOLDER)
    return manifest


def _make_shards(folder: FusedFolder, shards: Iterator[int], jobs: int) -> Iterator[int]:
    """Make the shards; yields each when it is made."""
    if jobs <= 1:
        for shard in shards:
            folder.make_shard(shard)
            yield shard
        return
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(folder, plugin_names()),
    )
    try:
        futures: dict[Future[None], int] = {}
        is_last = False
        while not is_last or futures:
            # A shard is leased when a process is free for it: the rest is left to other writers.
            while not is_last and len(futures) < jobs:
                leased = next(shards, None)
                is_last = leased is None
                if leased is not None:
                    futures[pool.submit(_make_in_process, leased)] = leased
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                future.result()
                yield futures.pop(future)
    except BrokenProcessPool as error:
        raise StorageError(
            f"A process that made shards of {folder.location} was killed, perhaps because memory "
            "ran out. Finished shards stay: run the same command again, with fewer jobs or a "
            "smaller rows_per_shard if memory is short."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_folder: FusedFolder
"""In a spawned process: the dataset that it makes shards of."""


def _start(folder: FusedFolder, plugins: Sequence[str]) -> None:
    global _folder
    expect_plugins(plugins)
    # A Ctrl-C reaches every process of the terminal, and the parent ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _folder = folder


def _make_in_process(shard: int) -> None:
    _folder.make_shard(shard)
