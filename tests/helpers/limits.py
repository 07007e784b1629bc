"""Five seconds and 300 MB: what an error about hostile data may take."""

import contextlib
import signal
import time

import pytest

from fusestore.errors import FusestoreError

SECONDS = 5.0
MEGABYTES = 300
_HANG_S = 60


def memory(line):
    """`VmRSS` or `VmHWM` of this process, in megabytes."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - read a thousand times
        return next(int(each.split()[1]) / 1024 for each in status if each.startswith(line))


def forget_peak():
    """Let `VmHWM` begin again at what is used now."""
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")


@contextlib.contextmanager
def alarm(seconds):
    """TimeoutError in this thread after some seconds."""

    def ring(*_):
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def within_limits():
    """Check what the body takes; its time is that of the processor, because tests share cores."""
    forget_peak()
    used, begin = memory("VmRSS"), time.process_time()
    with alarm(_HANG_S):
        yield
    assert time.process_time() - begin < SECONDS
    assert memory("VmHWM") - used < MEGABYTES


def refused(attack, says=None):
    """Check that a call ends with an error of ours within the limits."""
    with within_limits(), pytest.raises(FusestoreError, match=says):
        attack()
