"""What a forked process must not do: it lacks the threads that its parent's libraries had started.

Polars and obstore wait for theirs for ever, without a word. So whatever needs them in a
DataLoader's worker asks here first, and says what to do instead.
"""

from __future__ import annotations

import os

from fusestore.errors import InvalidInputError

_IMPORTED_IN = os.getpid()
"""A process with another id was forked from the one that imported this module."""


def check_not_forked(action: str) -> None:
    """See that this process was not forked from one that had imported fusestore.

    Args:
        action: what it is about to do, as "makes shards of X".

    Raises:
        InvalidInputError: it was.
    """
    if os.getpid() != _IMPORTED_IN:
        raise InvalidInputError(
            f"A forked worker {action}, and would hang. Start workers by forkserver or spawn, as "
            "StreamingLoader does: "
            'DataLoader(…, num_workers=2, multiprocessing_context="forkserver").'
        )
