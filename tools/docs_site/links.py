"""Links of the pages: which files of the repository they name, and where the site has these.

Most people read the pages as Markdown in the repository, so a link names a file by its path from
the page. On the site the same file may be a page, a section of the generated reference, or a
listing: see `site_files`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What looks like a link in a fenced block, a comment or code is none; headings hold none. The text
# of a link may be code.
_TOKEN = re.compile(
    r"^(?P<fence>[ ]*(?:`{3,}|~{3,}))[^`\n]*\n.*?^(?P=fence)[ \t]*$"
    r"|<!--.*?-->"
    r"|^\#+[ ].*?$"
    r"|(?P<open>\[(?:[^][`]|`[^`]*`|\[[^]]*\])*\]\(|<img[ ]src=\")(?P<target>[^)\s\"]+)"
    r"|(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def local_targets(text: str) -> Iterator[str]:
    """The files that a page links to, as it writes their paths, without anchors."""
    for token in _TOKEN.finditer(text):
        if token["target"] and _is_local(token["target"]):
            yield token["target"].partition("#")[0]


def rewrite(text: str, link: Callable[[str], str], code: Callable[[str], str | None]) -> str:
    """The page with its links to files changed, and links put around some code.

    Args:
        text: Markdown.
        link: the new target for the path of a file, which may have an anchor.
        code: the target for code within a sentence; None where it is left as it is.
    """

    def replaced(token: re.Match[str]) -> str:
        if token["target"] and _is_local(token["target"]):
            return token["open"] + link(token["target"])
        target = code(token["code"]) if token["code"] else None
        return token[0] if target is None else f"[{token[0]}]({target})"

    return _TOKEN.sub(replaced, text)


def repository_path(source: str, target: str) -> str:
    """The path from the repository's root of what a page links to.

    Args:
        source: the page's path from the root.
        target: the path that it writes, without an anchor.
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def relative(page: str, target: str) -> str:
    """The link from one page of the site to another, both given by their source's path."""
    path, anchor, name = target.partition("#")
    return posixpath.relpath(path, posixpath.dirname(page) or ".") + anchor + name


def _is_local(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:|\#|/", target)
