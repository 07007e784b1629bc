"""Code that comes with a model or a tokenizer, and runs only if it is trusted."""

from __future__ import annotations

from fusestore.errors import InvalidInputError


def refuse_untrusted_code(error: Exception, name: str) -> None:
    """Raise a sentence with our option where transformers asks for its argument.

    Raises:
        InvalidInputError: the error says that code of the folder would have to run.
    """
    if "trust_remote_code" in str(error):
        raise InvalidInputError(
            f"{name} needs Python code of its own, custom code that transformers does not have. "
            "Read it; if you trust it, add --trust-remote-code (trust_remote_code=True in Python)."
        ) from error
