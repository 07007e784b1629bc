"""Every error fusestore raises on purpose.

Each derives from `FusestoreError` and from the builtin that fits, so that callers can catch
either. A message names its subject, what was found, what was expected and what to do about it;
the command line prints it as it stands.
"""


class FusestoreError(Exception):
    """Base of all errors that fusestore raises on purpose."""


class NotFoundError(FusestoreError, FileNotFoundError):
    """A store, corpus, cache, model or file that was named is not there."""


class AlreadyExistsError(FusestoreError, FileExistsError):
    """Something of this name exists with other content; nothing was changed."""


class AccessDeniedError(FusestoreError, PermissionError):
    """The storage refused the credentials or the permission."""


class StorageError(FusestoreError, OSError):
    """The storage failed in a way that is neither absence nor permission."""


class CorruptionError(FusestoreError, OSError):
    """Stored bytes are missing, cut, or do not match their checksum."""


class FormatVersionError(FusestoreError, ValueError):
    """The store was written by a newer version of the format than this library reads."""


class InvalidInputError(FusestoreError, ValueError):
    """Input text, a table, an option or a file does not hold what it must."""


class FingerprintMismatchError(FusestoreError, ValueError):
    """Existing output was made with other settings than the ones asked for."""


class IncompatibleError(FusestoreError, ValueError):
    """What must belong together (corpus, cache, tokenizer, model) does not."""


class NonFiniteError(FusestoreError, ArithmeticError):
    """A model or a loss produced NaN where a number was expected."""


class DivergedError(FusestoreError, ArithmeticError):
    """A training run's loss rose so far that going on would do harm."""


class OutOfMemoryError(FusestoreError, MemoryError):
    """Not even the smallest piece of work fits into the device's memory."""


class MissingDependencyError(FusestoreError, ImportError):
    """An optional package is needed for what was asked."""
