"""What MkDocs calls while it builds the site: see docs/decisions/0058-docs-site.md."""

from __future__ import annotations

import logging
import os
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs_site.api_pages import api_pages, public_names
from tools.docs_site.command_pages import command_navigation, command_pages
from tools.docs_site.error_page import PAGE as ERROR_PAGE
from tools.docs_site.error_page import error_page
from tools.docs_site.links import relative, repository_path, rewrite
from tools.docs_site.schema_page import PAGE as SCHEMA_PAGE
from tools.docs_site.schema_page import raw_schemas, schema_page
from tools.docs_site.settings_page import PAGE as SETTINGS_PAGE
from tools.docs_site.settings_page import settings_page
from tools.docs_site.site_files import included_pages, site_path

log = logging.getLogger("mkdocs.hooks.fusestore")

_COMMANDS = "reference/commands/"
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
    for place, content in {**generated, **dict(raw_schemas())}.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files to their places on the site; link names of commands to the reference."""
    del config, files
    place = page.file.src_uri
    source = _sources.get(place)

    def link(target: str) -> str:
        if source is None:
            return target
        path, anchor, name = target.partition("#")
        wanted = repository_path(source, path)
        try:
            found = site_path(wanted)
        except FileNotFoundError:
            log.warning("%s links to %s, which is not in the repository.", source, target)
            return target
        if "#" in found:
            anchor = name = ""
        return relative(place, found) + anchor + name

    def code(text: str) -> str | None:
        target = public_names().get(text.removesuffix("()"))
        words = text.split()
        if len(words) > 1 and words[0] == "fusestore" and words[1].isalpha():
            target = _command_pages().get(words[1])
        if target is None or target.partition("#")[0] == place or _is_reference(place):
            return None
        return relative(place, target)

    return rewrite(markdown, link, code)


def _command_pages() -> dict[str, str]:
    return {
        title: path
        for each in command_navigation()
        if isinstance(each, dict)
        for title, path in each.items()
    }


def _is_reference(place: str) -> bool:
    return place.startswith(("reference/commands/", "files/", "changelog"))
