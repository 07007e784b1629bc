"""The generated reference has everything that the code has, and links lead to it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import fusestore as fs
from cli.command_help import LazyCommand
from cli.commands import COMMANDS
from fusestore import errors
from tools.docs_site.api_pages import PAGES, names_of, public_names
from tools.docs_site.command_pages import command_navigation, command_pages
from tools.docs_site.error_page import error_page
from tools.docs_site.links import (
    ROOT,
    link_code,
    local_targets,
    relative,
    repository_path,
    rewrite_links,
)
from tools.docs_site.schema_page import raw_schemas, schema_page
from tools.docs_site.settings_page import settings_page
from tools.docs_site.site_files import included_pages, site_path

NAV = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]


@pytest.fixture(scope="module")
def commands():
    return dict(command_pages())


def anchors(page):
    return re.findall(r"\{ #([^ }]+) \}", page)


@pytest.mark.parametrize("item", COMMANDS, ids=lambda item: item.name)
def test_a_command_has_a_page_with_each_of_its_options(item, commands):
    page = commands[f"reference/commands/{item.name}.md"]
    command = LazyCommand(item).load()
    context = command.make_context(item.name, [], resilient_parsing=True)
    shown = anchors(page)
    assert len(shown) == len(set(shown))
    for parameter in command.get_params(context):
        if parameter.name == "help" or parameter.get_help_record(context) is None:
            continue
        if parameter.param_type_name == "argument":
            name, _ = parameter.get_help_record(context)
            assert name.partition(" ")[0].lower() in shown
            continue
        assert max(parameter.opts, key=len).lstrip("-") in shown
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert f"`{flag}`" in page
    for example in item.examples:
        assert example in page


def test_links_between_options_and_keys_lead_there(commands):
    keys = set(anchors(settings_page()))
    for page in commands.values():
        assert set(re.findall(r"fusion-toml\.md#([\w.-]+)", page)) <= keys
    options = re.findall(r"\(commands/([\w-]+)\.md#([\w.-]+)\)", settings_page())
    assert len(options) > 100
    for name, option in options:
        assert option in anchors(commands[f"reference/commands/{name}.md"])


def test_every_key_of_a_fusion_toml_is_there():
    schema = json.loads((ROOT / "schemas/fusion.json").read_bytes())
    shown = set(anchors(settings_page()))
    for prefix, name in [("corpus", "CorpusConfig"), ("capture", "CaptureSettings")]:
        assert {f"{prefix}-{key}" for key in schema["$defs"][name]["properties"]} <= shown
    keys = {anchor.rpartition("-")[2] for anchor in shown}
    for definition in schema["$defs"].values():
        assert set(definition["properties"]) <= keys


def test_every_schema_is_there():
    page = schema_page()
    for name, content in raw_schemas():
        assert f"../{name}" in page
        assert json.loads(content)
    assert "</" not in re.sub(r"`[^`]*`", "", page)


def test_every_error_is_there():
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, fs.FusestoreError):
            assert f"`{name}`" in error_page()


def test_every_public_name_is_on_one_page():
    shown = [name for page in PAGES if page.module == "fusestore" for name in names_of(page)]
    assert len(shown) == len(set(shown))
    modules = {name for name in fs.__all__ if f"fs.{name}" in {page.title for page in PAGES}}
    missing = set(fs.__all__) - modules - {"__version__", "FusestoreError"} - set(shown)
    # The names of fs.data and the like are on the pages of these.
    assert all(f"fs.{name}" in public_names() for name in missing)
    for page in PAGES:
        assert f"reference/python/{page.slug}.md" in NAV


def test_every_page_has_a_title_and_a_place_in_the_navigation():
    listed = set(re.findall(r"[\w./-]+\.md", NAV))
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert path.read_text().startswith("# "), name
        assert name in listed or name.startswith("decisions/0"), f"{name} is not in mkdocs.yml"
    assert len(command_navigation()) == len(COMMANDS) + 1


def test_links_are_rewritten_outside_of_code():
    text = """# Title [no](x.md)
A [link](../a.md#b), [`code`](c.md "title"), `[no](d.md)`, [web](https://x.y/z), [here](#e).
![picture](f.svg) and `fusestore run x` <!-- [no](g.md) -->

```python
[no](h.md)
`fusestore run`
```
"""
    assert list(local_targets(text)) == ["../a.md", "c.md", "f.svg"]
    changed = rewrite_links(text, "<{}>".format)
    assert "[link](<../a.md#b>)" in changed
    assert '[`code`](<c.md> "title")' in changed
    assert "`[no](d.md)`" in changed
    assert changed.count("<") == 4  # three links and a comment
    assert rewrite_links(text, str) == text


def test_names_in_code_become_links():
    content = """<h2><code>ls</code></h2><p><code>ls</code> <a href="x"><code>ls</code></a>
<code>rm</code></p><pre><code>ls</code></pre>"""
    linked = link_code(content, {"ls": "ls.html"}.get)
    link = '<p><a href="ls.html"><code>ls</code></a>'
    assert linked == content.replace("<p><code>ls</code>", link)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("README.md", "index.md"),
        ("docs/chat.md", "chat.md"),
        ("docs/how-to", "how-to/README.md"),
        ("cli/capture.py", "reference/commands/capture.md"),
        ("fusestore/errors.py", "reference/errors.md"),
        ("schemas/recipe.json", "reference/json-schemas.md#recipe"),
        ("examples/chat.toml", "files/examples/chat.toml.md"),
    ],
)
def test_a_file_of_the_repository_has_a_place(path, place):
    assert site_path(path) == place


def test_a_file_that_does_not_exist_is_refused():
    with pytest.raises(FileNotFoundError, match=r"no\.py"):
        site_path("fusestore/no.py")


def test_files_that_pages_link_to_become_pages():
    pages = included_pages(
        [("docs/x.md", "[a](../examples/chat.toml) [b](../examples) [c](no.md)")]
    )
    path, text = pages["files/examples/chat.toml.md"]
    assert path == "examples/chat.toml"
    assert "```toml" in text
    assert "- `chat.toml`" in pages["files/examples.md"][1]
    assert pages["changelog.md"][0] == "CHANGELOG.md"
    notebook = included_pages([("docs/x.md", "[a](../examples/notebook.ipynb)")])
    _, text = notebook["files/examples/notebook.ipynb.md"]
    for block in re.findall(r"```python\n(.*?)\n```", text, re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize(
    ("page", "target", "link"),
    [
        ("index.md", "chat.md", "chat.md"),
        ("how-to/x.md", "chat.md#a", "../chat.md#a"),
        ("reference/commands/run.md", "reference/errors.md", "../errors.md"),
    ],
)
def test_links_are_relative(page, target, link):
    assert relative(page, target) == link
    assert (
        repository_path(f"docs/{page}", link.partition("#")[0])
        == f"docs/{target.partition('#')[0]}"
    )


def test_assets_say_where_they_come_from():
    script = Path(ROOT / "docs/assets/iframe-worker.js").read_text()
    assert "MIT license" in script
    assert "http" not in script


def test_the_home_page_has_the_result_of_the_readme():
    block = re.compile(r"<!-- result -->.*<!-- end of result -->", re.DOTALL)
    readme, home = ((ROOT / path).read_text() for path in ("README.md", "docs/index.md"))
    assert block.search(readme)[0] == block.search(home)[0]
