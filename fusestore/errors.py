"""The errors that fusestore raises on purpose.

Each derives from `FusestoreError` and from the builtin that fits, so that callers can catch
either. A message says what happened to what, what was found, what was expected and what to do
next; the command line prints it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable


class FusestoreError(Exception):
    """Base of all errors that fusestore raises on purpose."""


class NotFoundError(FusestoreError, FileNotFoundError):
    """A store, corpus, cache, model or file of the given name does not exist."""


class AlreadyExistsError(FusestoreError, FileExistsError):
    """A file or artifact of this name exists with other content; nothing was changed."""


class AccessDeniedError(FusestoreError, PermissionError):
    """The storage refused access: the credentials are wrong or lack a permission."""


class StorageError(FusestoreError, OSError):
    """The storage failed in a way that is neither absence nor permission."""


class CorruptionError(FusestoreError, OSError):
    """Stored bytes are missing, truncated, or do not match their checksum."""


class FormatVersionError(FusestoreError, ValueError):
    """The store has a newer version of the format than this library reads."""


class InvalidInputError(FusestoreError, ValueError):
    """An input text, table, option or file is not valid."""


class FingerprintMismatchError(FusestoreError, ValueError):
    """Existing output was made with settings other than the requested ones."""


class IncompatibleError(FusestoreError, ValueError):
    """A corpus, cache, tokenizer or model does not belong to the others it is used with."""


class NonFiniteError(FusestoreError, ArithmeticError):
    """A model or a loss produced NaN where a number was expected."""


class DivergedError(FusestoreError, ArithmeticError):
    """The loss of a training run rose so far that further steps would do harm."""


class OutOfMemoryError(FusestoreError, MemoryError):
    """Not even the smallest unit of work fits into the device's memory."""


class UnsupportedPlatformError(FusestoreError, NotImplementedError):
    """This operating system lacks what the request needs."""


class EngineError(FusestoreError, RuntimeError):
    """An engine failed, or gave rows that cannot be right."""


class LostRankError(EngineError):
    """Another process of a group that shares a model or a run ended, or does not answer."""


class ReportedByRankZeroError(EngineError):
    """This process of a group ends because the capture failed; rank 0 reports why."""


class MissingDependencyError(FusestoreError, ImportError):
    """The request needs an optional package that is not installed."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question with the nearest right names, for the message about a wrong one; else empty."""
    import difflib

    nearest = difflib.get_close_matches(name, tuple(names), n=2)
    return f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
