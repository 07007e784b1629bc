"""Workers of `--executor` for tests: in forks that begin at once, and slowed down if asked."""

from tests.helpers.fork_server import python

_MAIN = "from fusestore_cli.worker import main; main()"

SLOW = f"""
import time
from fusestore.capture.shard_queue import ShardQueue
from fusestore.fuse.folder import FusedFolder
for owner, name in ((ShardQueue, "put"), (FusedFolder, "make_shard")):
    def slow(*arguments, method=getattr(owner, name)):
        time.sleep({{pause}})
        return method(*arguments)
    setattr(owner, name, slow)
{_MAIN}
"""


def worker_program(pause: float = 0.0) -> tuple[str, ...]:
    """As `worker_process.PROGRAM`; each shard takes `pause` seconds longer."""
    return (python(), "-c", SLOW.format(pause=pause) if pause else _MAIN)


def writers(folder) -> set[int]:
    """Process ids of the writers of an artifact that have not ended in peace."""
    files = (folder / "leases").glob("writer-*")
    return {int(file.read_bytes().split()[1]) for file in files}
