"""`python -m fusestore.fuse.helper`: makes shards for a process that must not make them itself.

See `fusestore.data.fill`. Reads JSON lines: first `[store, storage_options, folder]`, then a
shard's number each. Answers each number with a line: `null`, or `[error class, message]`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from fusestore.errors import FusestoreError

if TYPE_CHECKING:
    from fusestore.fuse.folder import FusedFolder


def main() -> None:
    """Serve until the input ends."""
    # A Ctrl-C reaches every process of the terminal; this one ends with the one it serves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    store, options, location = json.loads(sys.stdin.readline())
    folder: FusedFolder | None = None
    for line in sys.stdin:
        problem = None
        try:
            folder = folder or _open(store, options, location)
            folder.fill(int(line))
            folder.complete()
        except FusestoreError as error:
            problem = [type(error).__name__, str(error)]
        except Exception as error:
            problem = [FusestoreError.__name__, f"Unexpected {type(error).__name__}: {error}"]
        try:
            answers.write(json.dumps(problem) + "\n")
            answers.flush()
        except BrokenPipeError:
            return


def _open(store: str, options: dict[str, str], location: str) -> FusedFolder:
    from fusestore.fuse.run import reopen
    from fusestore.storage.store import Store
    from fusestore.storage.urls import Location

    return reopen(Store.open(store, options), Location.parse(location))


if __name__ == "__main__":
    main()
