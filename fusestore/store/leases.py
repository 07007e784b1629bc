"""Leases: several writers share the shards of one artifact without a coordinator.

    leases/<shard>-<generation>   names the writer that makes the shard; create-only, never changed
    leases/writer-<writer>        the writer's heartbeat, rewritten every few seconds

The highest generation of a shard names its owner, which keeps the shard while it is alive. A
writer is dead when its heartbeat file is gone (it ended), when its process on this machine is gone,
or when an observer has seen the same heartbeat for `lease_s` seconds of its own clock; clocks of
different machines are never compared. A writer that takes over the shard of a dead one creates the
next generation: create-only lets exactly one succeed.

Leases divide work, they do not protect data: receipts say what is finished. If a writer that was
taken for dead goes on, two writers make one shard, and the same bytes of it. Leases are removed
when the artifact is complete.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, Self

from fusestore.errors import AlreadyExistsError, FusestoreError, NotFoundError
from fusestore.process_rank import first_shard
from fusestore.storage.location import Location
from fusestore.storage.objects import ListedFile
from fusestore.storage.publish import (
    MACHINE,
    is_running,
    publish,
    publish_new,
    storage_clock,
    temporary_owner,
)
from fusestore.store.receipts import receipt_path, shard_part

LEASE_S = 60.0
"""A writer is taken for dead when its heartbeat has not changed for this long."""

HEARTBEAT_S = 10.0
"""Seconds between heartbeats."""

SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at the other writers, for a writer that finds no shard to make."""

_LOOK_S = 10.0
_LOOK_SHARE = 20
"""A writer that finds free shards looks again after so many seconds, or so many times as long as
the look took."""

_LEASE = re.compile(r"(?P<shard>\d{6,})-(?P<generation>\d+)")
_HEARTBEAT = re.compile(rb"(?P<machine>[0-9a-f]{12}) (?P<pid>\d+) \d+\n")
_MAX_FILE_BYTES = 1_000


class _Look(NamedTuple):
    """What the listings of an artifact show.

    Attributes:
        time: when it began, by this process's clock.
        expires: when to look again.
        free: unfinished shards that nobody has leased, in this writer's order.
        leased: the other unfinished shards, with the generation of their lease.
    """

    time: float
    expires: float
    free: list[int]
    leased: dict[int, int]


class Leases:
    """One writer's view of which writer makes which shard; a context in which it sends heartbeats.

    Args:
        folder: where the leases lie.
        finished: looks up the shards that need no writer any more.
        num_shards: shards are 0 to `num_shards` - 1.
        is_finished: whether one shard is among them; by default looks up all.
        first: the shard to begin with, so that writers that start together spread.
        lease_s, heartbeat_s: see `LEASE_S` and `HEARTBEAT_S`.
    """

    def __init__(
        self,
        folder: Location,
        finished: Callable[[], Collection[int]],
        num_shards: int,
        *,
        is_finished: Callable[[int], bool] | None = None,
        first: int = 0,
        lease_s: float = LEASE_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._folder = folder
        self._finished = finished
        self._is_finished = is_finished or (lambda shard: shard in finished())
        self._order = [(first + shard) % num_shards for shard in range(num_shards)]
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._writer = os.urandom(8).hex()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> Self:
        self._send_heartbeat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        # Frees its leases now. If this fails, they expire.
        with contextlib.suppress(FusestoreError):
            self._heartbeat_file(self._writer).delete()

    def shards(self, wait: Callable[[int], None]) -> Iterator[int]:
        """Shards to make, one at a time, until all are finished.

        Each is leased when it is asked for. While living writers own all shards that are left,
        `wait` is called (with the number of these shards) before each further look at the owners;
        shards of dead owners are taken over.

        A look lists all shards, so one serves for many leases: what it shows as free, and is not,
        cannot be leased. So the cost of looks grows with the shards, not with their square.
        """
        taken: set[int] = set()
        while True:
            look = self._look(taken)
            if look.free:
                for shard in look.free:
                    if self._lease(shard, 0):
                        taken.add(shard)
                        yield shard
                    elif time.monotonic() - look.time >= SECONDS_BETWEEN_LOOKS:
                        # Other writers are at work here.
                        break
                    if time.monotonic() >= look.expires:
                        break
            elif not look.leased:
                return
            else:
                freed = self._take_over(look.leased)
                if freed is None:
                    wait(len(look.leased))
                else:
                    taken.add(freed)
                    yield freed

    def _look(self, taken: set[int]) -> _Look:
        """The unfinished shards that this writer has not taken: those are under way."""
        began = time.monotonic()
        # Leases first: if all are removed in between, all shards are finished.
        latest = self._latest()
        done = taken.union(self._finished())
        left = [shard for shard in self._order if shard not in done]
        free = [shard for shard in left if shard not in latest]
        leased = {shard: latest[shard] for shard in left if shard in latest}
        now = time.monotonic()
        return _Look(began, now + max(_LOOK_S, _LOOK_SHARE * (now - began)), free, leased)

    def _take_over(self, leased: Mapping[int, int]) -> int | None:
        """Lease a shard of a dead owner; None if all owners are alive."""
        alive: dict[str, bool] = {}
        for shard, generation in leased.items():
            owner = self._owner(shard, generation)
            if owner not in alive:
                alive[owner] = self._is_alive(owner)
            if not alive[owner] and self._lease(shard, generation + 1):
                return shard
        return None

    def _lease(self, shard: int, generation: int) -> bool:
        """Lease a shard; whether it is ours to make."""
        try:
            publish_new(self._lease_file(shard, generation), self._writer.encode())
        except AlreadyExistsError:
            return False
        # Its last owner may have finished it, and removed all leases, between look and lease.
        return not self._is_finished(shard)

    def _latest(self) -> dict[int, int]:
        """The highest generation of every leased shard."""
        latest: dict[int, int] = {}
        for name in self._folder.list():
            match = _LEASE.fullmatch(name)
            if match is not None:
                shard = int(match["shard"])
                latest[shard] = max(latest.get(shard, 0), int(match["generation"]))
        return latest

    def _owner(self, shard: int, generation: int) -> str:
        try:
            data = self._lease_file(shard, generation).read_prefix(_MAX_FILE_BYTES)
        except NotFoundError:
            return ""
        return data.decode(errors="replace")

    def _is_alive(self, writer: str) -> bool:
        if not re.fullmatch("[0-9a-f]{16}", writer):
            return False
        try:
            heartbeat = self._heartbeat_file(writer).read_prefix(_MAX_FILE_BYTES)
        except NotFoundError:
            return False
        match = _HEARTBEAT.fullmatch(heartbeat)
        if match is None:
            return False
        if match["machine"].decode() == MACHINE and not is_running(int(match["pid"])):
            return False
        now = time.monotonic()
        before, since = self._seen.get(writer, (b"", now))
        if before != heartbeat:
            self._seen[writer] = (heartbeat, now)
            return True
        return now - since < self._lease_s

    def _send_heartbeats(self) -> None:
        count = 0
        while not self._ended.wait(self._heartbeat_s):
            count += 1
            # A storage that fails for longer than the lease costs the shard, not the run.
            with contextlib.suppress(FusestoreError):
                self._send_heartbeat(count)

    def _send_heartbeat(self, count: int) -> None:
        data = f"{MACHINE} {os.getpid()} {count}\n".encode()
        publish(self._heartbeat_file(self._writer), data)

    def _heartbeat_file(self, writer: str) -> Location:
        return self._folder / f"writer-{writer}"

    def _lease_file(self, shard: int, generation: int) -> Location:
        return self._folder / f"{shard_part(shard)}-{generation}"


LEASE_FOLDER = "leases"
"""Where an artifact's writers divide its shards, below its folder."""


@contextlib.contextmanager
def share_shards(
    artifact: Location,
    finished: Callable[[], Collection[int]],
    num_shards: int,
    *,
    first: int | None = None,
    waiting: Callable[[int], None] | None = None,
) -> Iterator[Iterator[int]]:
    """Share the missing shards of an artifact with every other writer of it.

    A context that yields an iterator of the shards to write, each leased when it is asked for.
    The iterator ends when all shards are written. Before that it waits for other writers, and
    takes over the shards of dead ones. Inside the context this writer counts as alive: write
    the leased shards before leaving it.

    Args:
        artifact: its folder.
        finished: looks up the shards that need no writer any more.
        num_shards: shards are 0 to `num_shards` - 1.
        first: the shard to begin with; by default as the rank of this process says.
        waiting: called with the number of shards that others hold, once, before the first wait.
    """
    reported = False

    def wait(count: int) -> None:
        nonlocal reported
        if waiting is not None and not reported:
            waiting(count)
        reported = True
        time.sleep(SECONDS_BETWEEN_LOOKS)

    def is_finished(shard: int) -> bool:
        return (artifact / receipt_path(shard_part(shard))).has_file() and shard in finished()

    first = first_shard(num_shards) if first is None else first
    folder = artifact / LEASE_FOLDER
    with Leases(folder, finished, num_shards, is_finished=is_finished, first=first) as leases:
        yield leases.shards(wait)


_OTHER_MACHINE_S = 10 * LEASE_S
"""A heartbeat of another machine counts as alive for this long after the storage wrote it."""


def live_writers(folder: Location, files: Mapping[str, ListedFile]) -> list[str]:
    """Processes that write an artifact now, for messages.

    Of this machine: the process of a heartbeat or of a temporary file is running. Of another one:
    its heartbeat was written in the last ten minutes, by the storage's clock if it tells. An
    observer with time to spare compares heartbeats instead, as `Leases` does.

    Args:
        folder: the artifact's folder.
        files: a listing of it.
    """
    found = {}
    clock = storage_clock(folder)
    for path, file in files.items():
        name = path.rpartition("/")[2]
        temporary = temporary_owner(name)
        if temporary is not None:
            machine, pid = temporary
            if machine == MACHINE and is_running(pid):
                found[machine, pid] = f"process {pid}"
        elif path.startswith(f"{LEASE_FOLDER}/writer-"):
            match = _HEARTBEAT.fullmatch(_read_if_there(folder / path))
            if match is None:
                continue
            machine, pid = match["machine"].decode(), int(match["pid"])
            if machine == MACHINE:
                is_alive = is_running(pid)
            else:
                now = clock() or time.time()
                is_alive = file.modified is None or now - file.modified < _OTHER_MACHINE_S
            if is_alive:
                where = "" if machine == MACHINE else " of another machine"
                found[machine, pid] = f"process {pid}{where}"
    return list(found.values())


def _read_if_there(file: Location) -> bytes:
    try:
        return file.read_prefix(_MAX_FILE_BYTES)
    except NotFoundError:
        return b""


def remove_leases(folder: Location) -> None:
    """Remove all leases of a complete artifact."""
    if not folder.is_local:
        folder.delete()
        return
    for name in folder.list():
        (folder / name).delete()
    # The folder is gone, or another writer has just put its heartbeat there and will remove both.
    with contextlib.suppress(OSError):
        folder.path.rmdir()
