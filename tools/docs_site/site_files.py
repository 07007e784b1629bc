"""Where the site has a file of the repository, and the pages made of files outside of docs/.

A file in docs/ is a page or a picture. CHANGELOG.md and other Markdown become pages; a file whose
content the generated reference shows stands for its place there, and any other file that a page
links to becomes a listing. So no link leads out of the site, and none is lost.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable
from pathlib import PurePosixPath

from cli.commands import COMMANDS

from .links import ROOT, local_targets, repository_path

_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "schemas": "reference/json-schemas.md",
    "schemas/README.md": "reference/json-schemas.md",
    "cli/commands.py": "reference/commands/index.md",
    "fusestore/api.py": "reference/python/store.md",
    "fusestore/contents.py": "reference/python/store.md",
    "fusestore/data/__init__.py": "reference/python/data.md",
    "fusestore/errors.py": "reference/errors.md",
    "fusestore/__init__.py": "reference/python/index.md",
    "fusestore/integrations/__init__.py": "reference/python/integrations.md",
    "fusestore/losses/__init__.py": "reference/python/losses.md",
    "fusestore/stages.py": "reference/python/stages.md",
    "fusestore/testing/__init__.py": "reference/python/testing.md",
    "fusestore/train/__init__.py": "reference/python/train.md",
    "fusestore/workflows/fusion_config.py": "reference/fusion-toml.md",
}
"""Files that have a page of the site, by their path from the root."""

_ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Files that are pages without a link to them."""

_LANGUAGES = {
    ".json": "json",
    ".jinja": "jinja",
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}


def site_path(path: str) -> str:
    """The source path on the site of a file or folder of the repository.

    Args:
        path: from the repository's root.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{path} is not in the repository")
    if path in _PAGES:
        return _PAGES[path]
    if path.startswith("docs/"):
        folder = (ROOT / path).is_dir()
        return path.removeprefix("docs/") + ("/README.md" if folder else "")
    file = PurePosixPath(path)
    if file.parent.name == "schemas":
        return f"reference/json-schemas.md#{file.stem}"
    commands = [entry.name for entry in COMMANDS if path == f"cli/{entry.target.split(':')[0]}.py"]
    if commands:
        return f"reference/commands/{commands[0]}.md"
    return f"files/{path}.md"


def included_pages(pages: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Pages made of files outside of docs/ that pages link to, also from one another.

    Args:
        pages: path from the root, and text, of each page of docs/.

    Returns:
        By source path on the site: the file's path from the root, and the page's Markdown.
    """
    included: dict[str, tuple[str, str]] = {}
    queue = [*pages, *(_include(path, included) for path in _ALWAYS)]
    while queue:
        source, text = queue.pop()
        for target in local_targets(text):
            path = repository_path(source, target)
            file = ROOT / path
            place = site_path(path) if file.exists() else ""
            # A link to a file that does not exist is reported where the page is rendered.
            if place.startswith("files/") and place not in included:
                queue.append(_include(path, included))
    return included


def _include(path: str, included: dict[str, tuple[str, str]]) -> tuple[str, str]:
    text = _markdown(path)
    included[site_path(path)] = (path, text)
    return path, text if path.endswith(".md") else ""


def _markdown(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        names = sorted(each.name for each in file.iterdir() if not each.name.startswith(("_", ".")))
        return "\n".join([f"# `{path}/`", "", *(f"- `{name}`" for name in names), ""])
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return _notebook(path, text)
    language = _LANGUAGES.get(file.suffix, "text")
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"# `{path}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _notebook(path: str, text: str) -> str:
    parts = [f"# `{posixpath.basename(path)}`"]
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        # The page has one title, which is the file's name.
        parts.append(f"```python\n{source}\n```" if is_code else source.replace("# ", "## ", 1))
    return "\n\n".join(parts) + "\n"
