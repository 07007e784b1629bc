"""What people may be shown: addresses without secrets, names without control characters.

Messages, tracebacks and progress go through these functions, because terminals keep them, logs copy
them, and bug reports quote them.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote, urlsplit

_HTTP_SCHEMES = ("http://", "https://")

HIDDEN = "***"
"""Stands where a secret stood."""

_LEAST_SECRET = 6
"""Characters: a shorter value says nothing, and stands in too many words."""

_LEAST_SIGNATURE = 16
"""Characters: a longer value of a query may be a signature, whatever its name."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]+")

_SECRET_OPTION = re.compile(
    r"key|secret|token|pass|pwd|sas|cred|auth|header|connection|cookie|sign|cert|user|login", re.I
)
"""Names of storage options whose values are hidden; such as key, account_key, headers."""

_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|_KEY$|_SAS$")

_DIRECTING = frozenset("\u200e\u200f\u061c\u2028\u2029\u202a\u202b\u202c\u202d\u202e") | frozenset(
    "\u2066\u2067\u2068\u2069\ufeff"
)
"""Characters that change the order or the lines in which others are seen."""

_secrets: set[str] = set()
"""Secrets that this process was given, in addresses and options."""


def shown(url: str) -> str:
    """A path or URL without its password, and without the query of HTTP or its values elsewhere."""
    if "://" not in url:
        return url
    if url.startswith(_HTTP_SCHEMES):
        try:
            parts = urlsplit(url)
        except ValueError:
            return f"{url.partition('://')[0]}://{HIDDEN}"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    # Several addresses may stand in one, as in simplecache::ftp://user:password@host.
    without = re.sub(r"(://)[^/\s?#]*:[^/\s?#]*@", rf"\1{HIDDEN}@", url)
    return re.sub(r"([?&][^=&\s]*)=[^&\s]*", rf"\1={HIDDEN}", without)


def remember_secrets(url: str, options: Iterable[tuple[str, object]] = ()) -> None:
    """Keep the secrets of an address and of storage options out of all that this process shows.

    Args:
        url: the address.
        options: names and values, as text or JSON.
    """
    found = set(_of_url(url))
    for name, value in options:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        for inner, each in _texts(name, text):
            found.update(_of_url(each))
            if _SECRET_OPTION.search(inner) and "://" not in each:
                found.add(each)
    _secrets.update(each for each in found if len(each) >= _LEAST_SECRET)


def hidden(text: str) -> str:
    """A text without known secrets, and with every URL as `shown` has it."""
    return _URL.sub(lambda match: shown(match[0]), without_secrets(text))


def without_secrets(text: str) -> str:
    """A text without the secrets of this process's addresses, options and environment."""
    variables = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _LEAST_SECRET and "/" not in value[:1]
    }
    for secret in sorted(_secrets | variables, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def clean_cause(error: Exception) -> Exception:
    """An error, or one that says the same without its secrets: tracebacks show causes."""
    texts = list(_chain(error))
    if all(hidden(text) == text for text in texts):
        return error
    text = texts[0]
    number = getattr(error, "errno", None)
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    message = f"{kind}: {hidden(text)}"
    return OSError(number, message) if isinstance(number, int) else OSError(message)


def _chain(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def plain(text: str, keep: str = "\n\t") -> str:
    r"""A text with escapes, such as `\x1b`, in place of characters that direct a terminal.

    Args:
        text: perhaps a stranger's.
        keep: control characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _directs(char) else _escape(char) for char in text)


def plain_json(text: str) -> str:
    r"""JSON with escapes, such as `\u009b`, in place of characters that direct a terminal."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        char if char == "\n" or not _directs(char) else json.dumps(char)[1:-1] if ord(char) > 127
        else f"\\u{ord(char):04x}"
        for char in text
    )  # fmt: skip


def _directs(char: str) -> bool:
    if char in _DIRECTING or "\U000e0000" <= char <= "\U000e007f":
        return True
    return unicodedata.category(char) == "Cc"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _of_url(url: str) -> Iterator[str]:
    for match in _URL.finditer(url):
        try:
            parts = urlsplit(match[0])
            account, _, password = parts.netloc.rpartition("@")[0].partition(":")
        except ValueError:
            continue
        secret = password or account
        yield from (secret, unquote(secret))
        for pair in parts.query.split("&"):
            name, _, value = pair.partition("=")
            if _SECRET_OPTION.search(name) or len(value) >= _LEAST_SIGNATURE:
                yield from (value, unquote(value))


def _texts(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The texts in a value, each with the names above it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    waiting: list[tuple[str, object]] = [(name, value)]
    while waiting:
        key, each = waiting.pop()
        if isinstance(each, Mapping):
            waiting += [(f"{key} {inner}", below) for inner, below in each.items()]
        elif isinstance(each, list):
            waiting += [(key, below) for below in each]
        else:
            yield key, each if isinstance(each, str) else str(each)
