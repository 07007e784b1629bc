"""A check against work that hangs in a forked process.

A forked process lacks the threads that the libraries of its parent had started. Polars and obstore
wait for these threads forever. So code that needs them in a DataLoader worker calls
`check_not_forked` first, which fails with the remedy.
"""

from __future__ import annotations

import os

from fusestore.errors import InvalidInputError

_IMPORTED_IN = os.getpid()
"""A process with another id was forked from the one that imported this module."""


def check_not_forked(action: str) -> None:
    """Check that this process was not forked from a process that had imported fusestore.

    Args:
        action: what this process is about to do, as "makes shards of X".

    Raises:
        InvalidInputError: it was forked.
    """
    if os.getpid() != _IMPORTED_IN:
        raise InvalidInputError(
            f"A forked worker {action}, and would hang. Start workers by forkserver or spawn, as "
            "StreamingLoader does: "
            'DataLoader(…, num_workers=2, multiprocessing_context="forkserver").'
        )
