"""The page is data from strangers: no text of theirs becomes markup or code."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fusestore.report.learning_curves import LearningCurve
from fusestore.report.page import charts
from fusestore.report.page.content import (
    AlignmentReport,
    ReportArtifact,
    ShownDocument,
    SourceReport,
    StoreReport,
    UnmatchedToken,
    ViewerReport,
)
from fusestore.report.page.html import render, script_json
from fusestore.report.page.token_rows import DocumentRows, shown_token

HOSTILE = "</script><img src=x onerror=alert(1)><!--"


class Elements(HTMLParser):
    """Names of elements with their attributes, and the contents of scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self._in_script = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._in_script = True

    def handle_endtag(self, tag):
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def document(entries=2):
    return DocumentRows(
        document=7,
        token_ids=np.array([0, 1, 2], np.int32),
        weights=np.ones((3, 1)),
        kinds=np.ones((3, 1), np.uint8),
        labels=np.zeros((3, 2)),
        ids=np.zeros((3, 2, entries), np.int32),
        logprobs=np.zeros((3, 2, entries), np.float32),
        fused_kind=np.ones(3, np.uint8),
        disagreement=np.full(3, np.nan),
    )


@pytest.fixture(scope="module")
def hostile_page():
    report = StoreReport(
        store=HOSTILE,
        artifacts=(
            ReportArtifact(
                artifact=f"model/{HOSTILE}",
                kind="model",
                state="complete",
                description=HOSTILE,
                num_bytes=1,
                bytes_per_token=None,
                inputs=(HOSTILE,),
            ),
        ),
        other_bytes=0,
        sources=(
            SourceReport(
                cache=HOSTILE,
                model=HOSTILE,
                top_k=2,
                num_rows=3,
                scores=(),
                sampled_rows=0,
                tail=None,
                effective_k=None,
            ),
        ),
        alignments=(
            AlignmentReport(
                alignment=HOSTILE,
                method="span",
                num_tokens=1,
                coverage={"span": 1.0},
                unmatched=(UnmatchedToken(side="target", token=HOSTILE, times=1, total=1),),
            ),
        ),
        forecast=None,
        forecast_tokens=None,
        curves=(),
        viewer=ViewerReport(
            fused=HOSTILE,
            strategy=HOSTILE,
            split=HOSTILE,
            sources=(HOSTILE,),
            documents=(ShownDocument(document=7, num_tokens=3),),
            documents_of_split=1,
            tokens_of_split=3,
        ),
        absent=(),
    )
    tokens = [HOSTILE.encode(), b"\x00\x1b[31m\xff", "\u202eabc\u2028".encode()]
    return render(report, [document()], tokens, 3)


def test_hostile_texts_stay_texts(hostile_page):
    found = Elements(hostile_page)
    names = [name for name, _ in found.elements]
    assert not {"img", "iframe", "link", "object", "embed", "a:href"} & set(names)
    assert names.count("script") == 3
    assert not [key for _, attributes in found.elements for key in attributes if key[:2] == "on"]
    data = json.loads(found.scripts[0])
    assert data["viewer"]["texts"][0] == data["viewer"]["sources"][0] == HOSTILE
    assert data["viewer"]["texts"][1:] == [r"\x00\x1b[31m\xff", "\\u202eabc\u2028"]
    assert "\x1b" not in hostile_page
    assert "\u202e" not in hostile_page


def test_the_page_may_load_nothing(hostile_page):
    found = Elements(hostile_page)
    (policy,) = [
        attributes["content"] for name, attributes in found.elements if "http-equiv" in attributes
    ]
    script = re.search(r"<script>(.*?)</script>", hostile_page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    for _, attributes in found.elements:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    for forbidden in ("innerHTML", "insertAdjacentHTML", "eval(", "fetch(", "document.write"):
        assert forbidden not in script


def test_the_same_report_is_the_same_page(hostile_page):
    assert hostile_page.count("sha256-") == 1
    assert document().pack(np.arange(3), wide=False) == document().pack(np.arange(3), wide=False)


def test_curves_have_one_legend_and_escaped_names():
    runs = [LearningCurve(f"<b>{name}", "clm", "base", (0, 9), (2.0, 1.0)) for name in "ab"]
    chart = charts.curves_chart(runs)
    assert chart.count("&lt;b&gt;a (the text alone)</text>") == 1
    assert "<b>" not in chart
    assert "var(--c1)" in chart


def test_json_in_a_script_has_no_markup():
    assert json.loads(script_json({"a": f"&{HOSTILE}"})) == {"a": f"&{HOSTILE}"}
    assert not set("<>&") & set(script_json([HOSTILE, "&amp;"]))


def test_tokens_as_text():
    assert shown_token(b" a\n\t") == " a\n\t"
    assert shown_token("é".encode()[:1]) == r"\xc3"
    assert shown_token("a\u200db\r".encode()) == "a\\u200db\\r"
