"""`python -m fusestore.data.shard_cache.fetch_helper`: fetches for a process that must not.

See `fusestore.data.shard_cache.client`, which starts it. Reads JSON lines: first a `FetchJob`,
then the arguments of `FetchServer.want`. Answers each shard that was wanted now, when it is there,
with a line: `null`, or `[error class, message]`. Ends at a line `null` or with its input, and so
with the process it serves, even if that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from fusestore import errors
from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_cache.server import FetchServer
from fusestore.errors import FusestoreError


def main() -> None:
    """Serve until the input ends."""
    # A Ctrl-C reaches every process of the terminal; this one ends with the one it serves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(problem: BaseException | None) -> None:
        answers.write(json.dumps(None if problem is None else _described(problem)) + "\n")
        answers.flush()

    server: FetchServer | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if message is None:
            break
        if server is None:
            server = FetchServer(FetchJob.from_json(message), answer)
        else:
            server.want(**message)
    # Requests may be under way; what they would fill is nobody's any more.
    os._exit(0)


def _described(problem: BaseException) -> list[str]:
    known = [kind.__name__ for kind in type(problem).__mro__ if hasattr(errors, kind.__name__)]
    if known:
        return [known[0], str(problem)]
    return [FusestoreError.__name__, f"Unexpected {type(problem).__name__}: {problem}"]


if __name__ == "__main__":
    main()
