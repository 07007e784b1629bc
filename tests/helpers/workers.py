"""Workers of `--executor` for tests: in forks that begin at once, and slowed down if asked."""

from tests.helpers.fork_server import python

_MAIN = "from fusestore_cli.worker import main; main()"

SMALL_ALIGNMENT_SHARDS = """
from fusestore.align import alignment_writer
alignment_writer.write_alignment.__kwdefaults__["rows_per_shard"] = {rows}
"""

# Otherwise one process may make all shards before another has begun.
TOGETHER = """
import contextlib, time
from fusestore.align import alignment_writer
@contextlib.contextmanager
def together(artifact, *arguments, shared=alignment_writer.share_shards):
    with shared(artifact, *arguments) as shards:
        last = time.monotonic() + 60
        while len(list((artifact.path / "leases").glob("writer-*"))) < {count}:
            assert time.monotonic() < last, "no other writer came"
            time.sleep(0.01)
        time.sleep(0.5)
        yield shards
alignment_writer.share_shards = together
"""

SLOW = """
import time
from fusestore.capture.shard_queue import ShardQueue
from fusestore.fuse.folder import FusedFolder
for owner, name in ((ShardQueue, "put"), (FusedFolder, "make_shard")):
    def slow(*arguments, method=getattr(owner, name)):
        time.sleep({pause})
        return method(*arguments)
    setattr(owner, name, slow)
"""


def worker_program(pause: float = 0.0, alignment_rows: int | None = None) -> tuple[str, ...]:
    """As `worker_process.PROGRAM`.

    Each shard takes `pause` seconds longer. Shards of alignments have `alignment_rows` tokens, and
    two writers wait for each other before they make the first.
    """
    program = SLOW.format(pause=pause) if pause else ""
    if alignment_rows is not None:
        program += SMALL_ALIGNMENT_SHARDS.format(rows=alignment_rows) + TOGETHER.format(count=2)
    return (python(), "-c", program + _MAIN)


def writers(folder) -> set[int]:
    """Process ids of the writers of an artifact that have not ended in peace."""
    files = (folder / "leases").glob("writer-*")
    return {int(file.read_bytes().split()[1]) for file in files}
