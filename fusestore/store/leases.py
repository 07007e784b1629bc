"""Claims: several writers share the shards of one artifact without a coordinator.

    claims/<shard>-<generation>     the writer that makes the shard; create-only, never changed
    claims/writer-<writer>          a sign of life, rewritten every few seconds while it works

A shard belongs to the writer that its highest generation names, as long as that writer lives. A
writer is dead when its sign is gone (it ended), when it ran on this machine and no longer does, or
when an observer has seen the same sign for `lease_s` seconds of its own clock; clocks of different
machines are never compared. Whoever takes over a dead writer's shard creates the next generation:
create-only lets exactly one succeed.

Claims divide work, they do not protect data: what is finished, receipts say. Where a writer that
was taken for dead goes on all the same, two make one shard, and the same bytes of it. Claims are
removed when the artifact is complete.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Self

from fusestore.errors import AlreadyExistsError, FusestoreError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import MACHINE, is_running, publish, publish_new
from fusestore.store.receipts import shard_part

LEASE_S = 60.0
"""A writer whose sign of life has not changed for this long is taken for dead."""

BEAT_S = 10.0
"""Between signs of life."""

_CLAIM = re.compile(r"(?P<shard>\d{6,})-(?P<generation>\d+)")
_SIGN = re.compile(rb"(?P<machine>[0-9a-f]{12}) (?P<pid>\d+) \d+\n")
_MAX_CLAIM_BYTES = 1_000


class Claims:
    """One writer's view of who makes which shard; a context in which it shows signs of life.

    Args:
        folder: where the claims lie.
        finished: the shards that need no writer any more, freshly looked up.
        num_shards: shards are 0 to `num_shards` - 1.
        first: where this writer begins to look, so that writers started together spread.
        lease_s, beat_s: see `LEASE_S` and `BEAT_S`.
    """

    def __init__(
        self,
        folder: Location,
        finished: Callable[[], Collection[int]],
        num_shards: int,
        *,
        first: int = 0,
        lease_s: float = LEASE_S,
        beat_s: float = BEAT_S,
    ) -> None:
        self._folder = folder
        self._finished = finished
        self._order = [(first + shard) % num_shards for shard in range(num_shards)]
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._writer = os.urandom(8).hex()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._show_life(0)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        # Its claims are free from now on. Where that cannot be said, the lease says it.
        with contextlib.suppress(FusestoreError):
            self._sign(self._writer).delete()

    def shards(self, wait: Callable[[int], None]) -> Iterator[int]:
        """Shards to make, one at a time, until all are finished.

        Each is claimed when it is asked for. When all that is left belongs to other living
        writers, `wait` is called (with the number of their shards) before each look at how they
        are doing; what a dead one leaves is taken over.
        """
        taken: set[int] = set()
        while True:
            # What this writer has taken is under way: whoever consumes this is at it.
            done = taken.union(self._finished())
            left = [shard for shard in self._order if shard not in done]
            if not left:
                return
            shard = self._take(left)
            if shard is None:
                wait(len(left))
            else:
                taken.add(shard)
                yield shard

    def _take(self, shards: list[int]) -> int | None:
        """Claim one of the shards, rather one that nobody has; None when all owners live."""
        latest = self._latest()
        alive: dict[str, bool] = {}
        for shard in sorted(shards, key=lambda shard: shard in latest):
            generation = latest.get(shard, -1)
            if generation >= 0:
                owner = self._owner(shard, generation)
                if owner not in alive:
                    alive[owner] = self._lives(owner)
                if alive[owner]:
                    continue
            try:
                publish_new(self._claim(shard, generation + 1), self._writer.encode())
            except AlreadyExistsError:
                continue
            # Its last owner may have finished it between the look and the claim.
            if shard not in self._finished():
                return shard
        return None

    def _latest(self) -> dict[int, int]:
        """The highest generation of every claimed shard."""
        latest: dict[int, int] = {}
        for name in self._folder.list():
            match = _CLAIM.fullmatch(name)
            if match is not None:
                shard = int(match["shard"])
                latest[shard] = max(latest.get(shard, 0), int(match["generation"]))
        return latest

    def _owner(self, shard: int, generation: int) -> str:
        try:
            data = self._claim(shard, generation).read_prefix(_MAX_CLAIM_BYTES)
        except NotFoundError:
            return ""
        return data.decode(errors="replace")

    def _lives(self, writer: str) -> bool:
        if not re.fullmatch("[0-9a-f]{16}", writer):
            return False
        try:
            sign = self._sign(writer).read_prefix(_MAX_CLAIM_BYTES)
        except NotFoundError:
            return False
        match = _SIGN.fullmatch(sign)
        if match is None:
            return False
        if match["machine"].decode() == MACHINE and not is_running(int(match["pid"])):
            return False
        now = time.monotonic()
        before, since = self._seen.get(writer, (b"", now))
        if before != sign:
            self._seen[writer] = (sign, now)
            return True
        return now - since < self._lease_s

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._beat_s):
            count += 1
            # A storage that fails for longer than the lease costs the shard, not the run.
            with contextlib.suppress(FusestoreError):
                self._show_life(count)

    def _show_life(self, count: int) -> None:
        publish(self._sign(self._writer), f"{MACHINE} {os.getpid()} {count}\n".encode())

    def _sign(self, writer: str) -> Location:
        return self._folder / f"writer-{writer}"

    def _claim(self, shard: int, generation: int) -> Location:
        return self._folder / f"{shard_part(shard)}-{generation}"


def remove_claims(folder: Location) -> None:
    """Remove all claims, once what they were for is complete."""
    if not folder.is_local:
        folder.delete()
        return
    for name in folder.list():
        (folder / name).delete()
    # Not there, or another writer has just put its sign there: it will remove both.
    with contextlib.suppress(OSError):
        folder.path.rmdir()
