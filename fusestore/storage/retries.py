"""Turns errors of storages into our errors, and retries requests that failed temporarily.

Object storage answers some requests with 500 or 503, drops connections and truncates bodies,
although the data are whole. So every verb on a remote `Location` is retried a few times. That is
safe, because each verb may be repeated: reading, listing, deleting, writing the same bytes, and
create-only writing, which recognizes its own earlier success by the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from fusestore.errors import AccessDeniedError, FusestoreError, NotFoundError, StorageError
from fusestore.storage.disk_errors import WRITING_FAILED, remedy
from fusestore.storage.object_errors import RefusedAnswerError, WrongRangeError
from fusestore.storage.shown import clean_cause, hidden, shown

ATTEMPTS = 6
"""Attempts at a verb on a remote location before its error is raised."""

FIRST_WAIT_S = 0.2
"""Mean wait before the second attempt; each later wait is twice as long: six seconds in all."""

_SHORTER = 0.05
"""Share of the waits where the server answers with the wrong bytes."""

_HUB_ATTEMPTS = 2
"""Attempts on `hf://`: its client retries most requests itself, for twenty seconds."""

_CLIENTS = ("botocore", "aiohttp", "httpx", "httpx2")
"""Packages with errors that derive from Exception alone; importing them costs a second."""

_HUB_CLIENTS = ("huggingface_hub", "httpx", "httpx2")
"""Packages that read `hf://`."""

_PERMANENT = {errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE}
"""Error numbers that another attempt does not change."""


class Address(Protocol):
    """The properties of a `Location` that retries depend on."""

    @property
    def url(self) -> str:
        """An absolute local path, or `protocol://…`."""

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine's filesystem."""


_Address = TypeVar("_Address", bound=Address)
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def with_retries(
    verb: Callable[Concatenate[_Address, _Parameters], _Result],
) -> Callable[Concatenate[_Address, _Parameters], _Result]:
    """Decorate a verb on a location: its errors become ours, and temporary ones are retried."""

    @functools.wraps(verb)
    def attempt(
        location: _Address, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        attempts = 1 if location.is_local else ATTEMPTS
        if location.url.startswith("hf://"):
            attempts = _HUB_ATTEMPTS
        wait = FIRST_WAIT_S
        while True:
            attempts -= 1
            try:
                with storage_errors(location):
                    return verb(location, *args, **kwargs)
            except StorageError as error:
                if isinstance(error, RefusedAnswerError):
                    raise
                if attempts == 0 or getattr(error.__cause__, "errno", None) in _PERMANENT:
                    raise
                # It has answered, and at once: there is nothing to wait for.
                pause = wait * (_SHORTER if isinstance(error, WrongRangeError) else 1.0)
            # Random, so that many writers do not retry all at once.
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            wait *= 2

    return attempt


@contextlib.contextmanager
def storage_errors(location: Address) -> Iterator[None]:
    """Turn errors of the operating system and of the storages' clients into ours."""
    try:
        yield
    except FusestoreError:
        raise
    except FileNotFoundError as error:
        detail = str(error)
        if "bucket does not exist" in detail.lower() or "NoSuchBucket" in detail:
            bucket = location.url.split("://", 1)[-1].split("/", 1)[0]
            raise NotFoundError(
                f"Bucket {bucket!r} of {shown(location.url)} does not exist. "
                "Create it first; fusestore never creates buckets."
            ) from clean_cause(error)
        raise NotFoundError(f"{shown(location.url)} does not exist.") from clean_cause(error)
    except PermissionError as error:
        raise _denied(location, error) from clean_cause(error)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        # huggingface_hub reports a denial by the status alone.
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise _denied(location, error) from clean_cause(error)
        raise _failed(location, error) from clean_cause(error)
    except Exception as error:
        if type(error).__module__.split(".", 1)[0] not in _CLIENTS and not (
            location.url.startswith("hf://") and _lost_session(error)
        ):
            raise
        raise StorageError(
            f"{shown(location.url)} could not be reached: {hidden(str(error))}"
        ) from clean_cause(error)


def _lost_session(error: Exception) -> bool:
    """Whether another thread closed huggingface_hub's session before this thread used it.

    All threads share one session, and a thread that cannot connect closes it and sets it to None.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals["__name__"]).split(".", 1)[0]
    return isinstance(error, RuntimeError | AttributeError) and package in _HUB_CLIENTS


def _failed(location: Address, error: OSError) -> StorageError:
    text = f"{shown(location.url)} could not be read or written: {hidden(str(error))}"
    if location.is_local and error.errno in WRITING_FAILED:
        text = f"{shown(location.url)} could not be written: {error}. {remedy(error.errno)}"
    elif location.is_local and error.errno == errno.EIO:
        text = f"{text}. {remedy(error.errno)}"
    return StorageError(text)


def _denied(location: Address, error: Exception) -> AccessDeniedError:
    if location.is_local:
        return AccessDeniedError(
            f"Access to {shown(location.url)} was denied ({error}). Check the permissions: a file "
            "must be readable, and the folder of a file that is written must be writable."
        )
    return AccessDeniedError(
        f"Access to {shown(location.url)} was denied ({hidden(str(error))}). Check the "
        "permissions; for object storage, the AWS_* variables or --storage-option; for hf://, "
        "HF_TOKEN."
    )
