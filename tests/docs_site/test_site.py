"""The site as `make docs` builds it: strictly, with nothing from another host, and readable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers.browser import browser, needs_browser, violations
from tests.helpers.made_once import made_once

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

PAGES = ["index.html", "training.html", "reference/commands/capture.html"]
PAGES += ["reference/python/store.html", "explanation/alignment-by-example.html"]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    def build(folder):
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
        result = subprocess.run(
            [*command, "--site-dir", str(folder)],
            cwd=ROOT,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    return made_once(tmp_path_factory, "site", build)


class Assets(HTMLParser):
    """What a browser fetches for a page by itself, and where its links lead."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(values["href"])
        self.fetched += [values[key] for key in ("src", "srcset", "poster") if values.get(key)]


def test_nothing_is_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        for address in Assets(page.read_text()).fetched:
            assert not re.match(r"[a-z+]+:|//", address) or address.startswith("data:"), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet


def test_links_of_a_page_lead_somewhere(site):
    """A second look than that of MkDocs: also at what its own templates and mkdocstrings make."""
    parsed = {page: Assets(page.read_text()) for page in site.rglob("*.html")}
    broken = []
    for page, found in parsed.items():
        # The page for addresses that do not exist is served at any of them.
        for link in () if page.name == "404.html" else found.links:
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link) or not link:
                continue
            target = (page.parent / path).resolve() if path else page
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (
                anchor and target in parsed and anchor not in parsed[target].anchors
            ):
                broken.append((page.relative_to(site), link))
    assert not broken


def test_the_reference_is_rendered(site):
    store = (site / "reference/python/store.html").read_text()
    for verb in ("capture", "fuse", "verify", "push"):
        assert f'id="fusestore.Store.{verb}"' in store
    assert "Raises:" in store
    assert "errors.html#fusestore.errors.NotFoundError" in store
    settings = (site / "reference/python/settings.html").read_text()
    assert "Maximum number of entries kept of each distribution" in settings
    assert "Field(" not in settings
    for page in (site / "reference/python").glob("*.html"):
        assert not re.search(r'id="fusestore\.[\w.]*\._[a-z]', page.read_text()), page
    found = json.loads((site / "search/search_index.json").read_text())["docs"]
    assert any(each["location"].endswith("capture.html#kept-entries") for each in found)


@needs_browser
@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_are_readable(site, width, dark):
    with browser(site / PAGES[0], width=width, dark=dark, touch=width < 500) as driver:
        for name in PAGES:
            driver.get((site / name).as_uri())
            wide = "return document.documentElement.scrollWidth - window.innerWidth"
            assert driver.execute_script(wide) <= 0, name
            assert not violations(driver), name


@needs_browser
def test_search_works_from_opened_files(site):
    from selenium.webdriver.support.ui import WebDriverWait

    with browser(site / "index.html") as driver:
        driver.find_element("css selector", ".md-search__input").send_keys("top-k")
        WebDriverWait(driver, 60).until(
            lambda found: found.find_elements("css selector", ".md-search-result__link")
        )
