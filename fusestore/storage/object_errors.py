"""Errors of S3 and HTTP servers as errors of Python and of this package, without secrets."""

from __future__ import annotations

import re

from fusestore.errors import InvalidInputError, StorageError
from fusestore.storage.shown import hidden, shown


class RefusedAnswerError(StorageError):
    """The server answers in a way that another attempt does not change."""


class WrongRangeError(StorageError):
    """The server answers with other bytes than it was asked for; another of its nodes may not."""


_DENIED = ("PermissionDeniedError", "UnauthenticatedError")


def plain_error(error: Exception, url: str) -> tuple[Exception, int | None]:
    """An error of obstore as an error of Python or ours, without secrets, and the HTTP status.

    Other errors are returned unchanged.
    """
    text, _, debug = str(error).partition("\n\nDebug source")
    if isinstance(error, ValueError) and text.startswith("Could not parse path"):
        return InvalidInputError(f"{shown(url)} is no name of an object: {hidden(text)}."), None
    if not type(error).__module__.startswith("obstore") and not debug:
        return error, None
    if "Encountered object with invalid path" in text:
        plain: Exception = InvalidInputError(
            f"A listing below {shown(url)} has a name that is no path inside it: "
            f"{text.rpartition(': ')[0]}. Do not trust this store."
        )
        return plain, None
    if "BadScheme" in debug:
        plain = RefusedAnswerError(
            f"The server of {shown(url)} redirects from https to http, where others could read and "
            "change the answer. Give the address of the file."
        )
        return plain, None
    if "redirect" in f"{text} {debug}".lower() and "without LOCATION" not in text:
        plain = RefusedAnswerError(
            f"The server of {shown(url)} redirects again and again. Give the address of the file."
        )
        return plain, None
    if re.search(r"Requested \d+\.\.\d+, got \d+\.\.\d+|value for CONTENT_RANGE", text):
        plain = WrongRangeError(
            f"The server of {shown(url)} answers with other bytes than it was asked for. Use "
            "another server, or copy the store here."
        )
        return plain, None
    if "Range request not supported" in text:
        plain = WrongRangeError(
            f"The server of {shown(url)} does not understand ranges: it sends the whole file. "
            "Use another server, or copy the dataset here."
        )
        return plain, None
    if "Content-Length Header missing" in text:
        plain = InvalidInputError(
            f"The server of {shown(url)} does not say how long the file is. Download the file and "
            "use the copy."
        )
        return plain, None
    match = re.search(r"status code: (\d+)", text)
    status = int(match[1]) if match else None
    detail = _detail(text, debug)
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        plain = FileNotFoundError(detail)
    elif status in (401, 403) or type(error).__name__ in _DENIED:
        plain = PermissionError(detail)
    elif status == 412 and type(error).__name__ == "AlreadyExistsError":
        plain = FileExistsError(detail)
    else:
        plain = StorageError(f"{shown(url)} could not be reached: {detail}")
    # obstore does not follow a redirection without a location.
    return plain, 301 if "without LOCATION" in text else status


def _detail(text: str, debug: str) -> str:
    """The request and the answer in one line: no credentials of the URL, no body of the answer."""
    request = re.search(r"Error performing (\w+) (\S+) in \S+ - (.*)", text)
    summary = request[3].split(": <")[0].rstrip(": ") if request else text.splitlines()[0]
    for tag in ("Code", "Message"):
        if answer := re.search(rf"<{tag}>([^<]*)</{tag}>", text):
            summary += f" ({answer[1]})"
    reasons = re.findall(r'message: "([^"]*)"', debug) if "<" not in text else []
    reasons += ["it took too long"] if "TimedOut" in debug else []
    summary += f" ({reasons[-1]})" if reasons else ""
    return hidden(f"{request[1]} {request[2]}: {summary}" if request else summary)
