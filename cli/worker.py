"""A worker of an executor: the command, until the process that started it ends."""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

_PARENT_ENDED = 1


def main() -> NoReturn:
    """Run the command of the arguments; ends at once when standard input is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A program that was started in the background ignores it, and so would its workers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from .app import main as run

    run()


def _end_with_parent() -> None:
    # Not by sys.stdin, which Python cannot close at its end while a thread reads it.
    while os.read(0, 1):
        pass
    os._exit(_PARENT_ENDED)
