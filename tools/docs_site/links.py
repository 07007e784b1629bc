"""Links of the pages: which files of the repository they name, and where the site has these.

Most people read the pages as Markdown in the repository, so a link names a file by its path from
the page. On the site the same file may be a page, a section of the generated reference, or a
listing: see `site_files`.
"""

from __future__ import annotations

import html
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
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_CODE = re.compile(
    r"<(?P<tag>a|h[1-6]|pre|dt)\b.*?</(?P=tag)>|<code>(?P<code>[^<]+)</code>", re.DOTALL
)


def local_targets(text: str) -> Iterator[str]:
    """The files that a page links to, as it writes their paths, without anchors."""
    for token in _TOKEN.finditer(text):
        if token["target"] and _is_local(token["target"]):
            yield token["target"].partition("#")[0]


def rewrite_links(text: str, change: Callable[[str], str]) -> str:
    """The page, Markdown, with each path of a file changed; it may have an anchor."""

    def replaced(token: re.Match[str]) -> str:
        target = token["target"]
        return token["open"] + change(target) if target and _is_local(target) else token[0]

    return _TOKEN.sub(replaced, text)


def link_code(content: str, place: Callable[[str], str | None]) -> str:
    """The page, HTML, with code within sentences made a link.

    Args:
        content: HTML. Links, headings and blocks of code stay as they are.
        place: the link for a piece of code, or None.
    """

    def replaced(token: re.Match[str]) -> str:
        target = place(html.unescape(token["code"])) if token["code"] else None
        return token[0] if target is None else f'<a href="{target}">{token[0]}</a>'

    return _CODE.sub(replaced, content)


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
