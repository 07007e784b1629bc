"""`python -m fusestore.data.fill_helper`: makes shards for a process that must not do so.

See `fusestore.data.fill`. Reads JSON lines: first `[store, storage_options, folder]`, then a
shard's number each. Answers each number with a line: `null`, or `[error class, message]`.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from fusestore.data.fill import ShardFiller, ShardMaker
from fusestore.errors import FusestoreError


def main() -> None:
    """Serve until the input ends."""
    # A Ctrl-C reaches every process of the terminal; this one ends with the one it serves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    store, options, folder = json.loads(sys.stdin.readline())
    maker = ShardMaker(ShardFiller(store, tuple((key, value) for key, value in options), folder))
    for line in sys.stdin:
        problem = None
        try:
            maker.make(int(line))
        except FusestoreError as error:
            problem = [type(error).__name__, str(error)]
        except Exception as error:
            problem = [FusestoreError.__name__, f"Unexpected {type(error).__name__}: {error}"]
        try:
            answers.write(json.dumps(problem) + "\n")
            answers.flush()
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
