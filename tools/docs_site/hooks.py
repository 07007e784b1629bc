"""What MkDocs calls while it builds the site: see docs/decisions/0058-docs-site.md."""

from __future__ import annotations

import functools
import logging
import os
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs_site.api_pages import api_pages, public_names
from tools.docs_site.command_pages import command_navigation, command_pages
from tools.docs_site.error_page import PAGE as ERROR_PAGE
from tools.docs_site.error_page import error_classes, error_page
from tools.docs_site.links import link_code, relative, repository_path, rewrite_links
from tools.docs_site.schema_page import PAGE as SCHEMA_PAGE
from tools.docs_site.schema_page import raw_schemas, schema_page
from tools.docs_site.settings_page import PAGE as SETTINGS_PAGE
from tools.docs_site.settings_page import settings_page
from tools.docs_site.site_files import included_pages, site_path

log = logging.getLogger("mkdocs.hooks.fusestore")

_COMMANDS = "reference/commands/"
_ERRORS = {each.__name__ for each in error_classes()}
_sources: dict[str, str] = {}
"""Path from the repository's root of each page that is a file of it, by source path on the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each command into the navigation, and a link to the repository if known."""
    config.nav = _with_commands(config.nav)
    repository = os.environ.get("REPOSITORY_URL")
    if repository:
        link = {"icon": "fontawesome/brands/git-alt", "link": repository, "name": "Repository"}
        config.extra["social"] = [link]
    return config


def _with_commands(nav: Any) -> Any:  # noqa: ANN401 - nested lists and tables
    if isinstance(nav, list):
        return [_with_commands(each) for each in nav]
    if isinstance(nav, dict):
        return {
            title: command_navigation() if content == _COMMANDS else _with_commands(content)
            for title, content in nav.items()
        }
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of code, and those of files outside of docs/."""
    generated = {
        SETTINGS_PAGE: settings_page(),
        SCHEMA_PAGE: schema_page(),
        ERROR_PAGE: error_page(),
        **dict(command_pages()),
        **dict(api_pages()),
    }
    pages = [(f"docs/{page.src_uri}", page.content_string) for page in files.documentation_pages()]
    _sources.clear()
    _sources.update({source.removeprefix("docs/"): source for source, _ in pages})
    for place, (source, text) in included_pages(pages).items():
        _sources[place] = source
        generated[place] = text
    contents: dict[str, str | bytes] = {**generated, **dict(raw_schemas())}
    for place, content in contents.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to their places on the site."""
    del config, files
    place = page.file.src_uri
    source = _sources.get(place)
    if source is None:
        return markdown

    def changed(target: str) -> str:
        path, anchor, name = target.partition("#")
        try:
            found = site_path(repository_path(source, path))
        except FileNotFoundError:
            log.warning("%s links to %s, which is not in the repository.", source, target)
            return target
        if "#" in found:
            anchor = name = ""
        return relative(place, found) + anchor + name

    return rewrite_links(markdown, changed)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link names of commands, errors and the Python API, written as code, to the reference."""
    del config
    place = page.file.src_uri
    if place.startswith("files/"):
        return html

    def link(text: str) -> str | None:
        target = _place_of(text)
        if target is None or target.partition("#")[0] == place:
            return None
        path, anchor, name = target.partition("#")
        file = files.src_uris[path]
        return file.url_relative_to(page.file) + anchor + name

    return link_code(html, link)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Mend what Material lacks: zooming on a phone, and a name of the search for screen readers."""
    del page, config
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    output = re.sub(r'<meta name="viewport"[^>]*>', viewport, output, count=1)
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def _place_of(text: str) -> str | None:
    """The place on the site of what is written as code."""
    words = text.split()
    if len(words) > 1 and words[0] == "fusestore":
        return _command_pages().get(words[1])
    if text in _ERRORS:
        return f"{ERROR_PAGE}#fusestore.errors.{text}"
    return public_names().get(text.removesuffix("()"))


@functools.cache
def _command_pages() -> dict[str, str]:
    return {
        title: path
        for each in command_navigation()
        if isinstance(each, dict)
        for title, path in each.items()
    }
