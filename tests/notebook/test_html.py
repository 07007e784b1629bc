"""What a notebook shows of a store and of what it holds."""

import re
import shutil
from html.parser import HTMLParser

import pytest

import fusestore as fs
from fusestore.forecast.forecast import Forecast
from fusestore.merge.manifest import MergedModel, MergeManifest
from fusestore.store.layout import Store
from fusestore.store.shown_html import ROWS_SHOWN, tables_html
from fusestore.store.shown_table import ShownTable
from fusestore.tokenizers.vocabulary import Vocabulary
from fusestore.tokenizers.vocabulary_table import load_vocabulary, save_vocabulary
from fusestore.train.manifest import TrainedModel, TrainingManifest
from fusestore.workflows.comparison import ComparedRow, Comparison
from tests.helpers.command import Command
from tests.helpers.kept_copy import first_store, store

__all__ = ["first_store", "store"]

HOSTILE = "<script>alert('x')</script>"


class _Parser(HTMLParser):
    """Checks that every tag is closed, and collects the text of cells and captions."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], {}, ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in {
            *("div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"),
            *("details", "summary"),
        }
        assert {name for name, _ in attrs} <= {"style", "class", "scope", "colspan"}
        style = dict(attrs).get("style", "")
        assert "color" not in style
        assert "background" not in style
        self.open.append(tag)
        self.found.setdefault(tag, []).append("")
        self.found.setdefault("styles", []).append((tag, style))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        for tag in self.open:
            self.found[tag][-1] += data


def shown(value):
    return _Parser(value._repr_html_())


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


@pytest.fixture
def opened(first_store):
    return fs.open_store(first_store)


def handles(opened):
    """Everything that a notebook may show, by `kind/name`."""
    return {
        "corpus/chats": opened.open_corpus("chats"),
        "cache/wide": opened.open_cache("wide"),
        "cache/instructions": opened.open_cache("instructions"),
        "cache/drawn": opened.open_cache("drawn"),
        "cache/patchy": opened.open_cache("patchy"),
        "alignment/wide--small": opened.open_alignment("wide--small"),
        "fused/mince": opened.open_fused("mince"),
        "fused/mixed": opened.open_fused("mixed"),
    }


def test_a_store_is_shown_as_ls_lists_it(opened, command):
    page = shown(opened)
    listed = command.succeeds("ls", "-s", opened.location.url, "--json").json
    assert page.found["caption"] == [f"Store {opened.location}"]
    cells = [
        text
        for each in listed["artifacts"]
        for text in (each["artifact"], each["state"], each["description"])
    ]
    assert page.found["td"] == cells


def test_an_artifact_is_shown_as_show_prints_it(opened, command):
    for path, handle in handles(opened).items():
        page = shown(handle)
        kind, name = path.split("/")
        title = {"fused": "Fused dataset"}.get(kind, kind.capitalize())
        assert page.found["caption"][0] == f"{title} {name}"
        printed = " ".join(command.succeeds("show", path, "-s", opened.location.url).out.split())
        for text in (*page.found["th"], *page.found["td"]):
            if kind == "cache" and text in page.found["table"][1]:
                continue  # Rows are of `show --document`.
            assert " ".join(text.split()) in printed, (path, text)
        (summary,) = page.found["summary"]
        assert summary == "settings"


def test_a_cache_shows_its_first_rows(opened, command):
    for name in ("wide", "instructions", "patchy"):
        table = shown(opened.open_cache(name)).found["table"][1]
        assert f"cache/{name}, document 0" in table
        assert "no row" not in table
    printed = command.succeeds(
        *("show", "cache/wide", "-s", opened.location.url, "-d", 0, "--rows", 5)
    ).out
    cells = shown(opened.open_cache("wide")).found["td"]
    assert "' embrace'" in cells
    assert "' embrace'" in printed


def test_numbers_are_on_the_right_and_text_on_the_left(opened):
    page = shown(opened.open_cache("wide"))
    cells = [style for tag, style in page.found["styles"] if tag == "td"]
    by_text = dict(zip(page.found["td"], cells, strict=True))
    assert "right" in by_text["0"]
    assert "left" in by_text["' embrace'"]


def test_models_and_results_are_shown(opened, first_store):
    model = first_store / "models"
    fused = opened.describe("model/fused")
    for details in (fused, opened.describe("model/merged")):
        assert details.artifact in shown(details).found["caption"][0]
        assert len(repr(details)) < 250
    location = fs.Location.parse(model)
    trained = TrainedModel(
        location / "fused", TrainingManifest.load(location / "fused" / "manifest.json")
    )
    merged = MergedModel(
        location / "merged", MergeManifest.load(location / "merged" / "manifest.json")
    )
    assert shown(trained).found["caption"] == ["Model fused"]
    assert shown(merged).found["caption"] == ["Model merged"]
    for created, said in ((True, "made now"), (False, "was there")):
        page = shown(fs.StageResult(trained, created))
        assert said in page.found["p"][0]
        assert page.found["caption"] == ["Model fused"]
    assert fs.StageResult("text", created=True)._repr_html_() is None


def test_a_dataset_shows_itself_wherever_it_lies(opened, tmp_path):
    dataset = fs.open_fused(opened.location, "mixed", cache_dir=tmp_path)
    page = shown(dataset)
    assert page.found["caption"] == [f"Fused dataset {dataset.name}"]
    assert f"{dataset.num_tokens:,}" in page.found["td"]
    assert "recipe.strategy" in page.found["details"][0]
    assert re.fullmatch(r"FusedDataset\('\w+': single of drawn, [^\n]+\)", repr(dataset))
    handle = fs.Fused(opened, fs.Location.parse(dataset.folder))
    assert shown(handle).found["caption"] == [f"Fused dataset {dataset.name}"]


@pytest.mark.slow
def test_a_forecast_is_shown(opened, command):
    forecast = opened.forecast(fs.Recipe(sources=["small", "wide"], target="small"))
    assert isinstance(forecast, Forecast)
    page = shown(forecast)
    titles = [table.title for table in forecast.tables()]
    assert page.found["caption"] == titles
    assert str(forecast.verdict) in page.found["p"]
    printed = command.succeeds(
        *("forecast", "-s", opened.location.url, "--source", "small", "--source", "wide"),
        *("--target", "small"),
    ).out
    for paragraph in page.found["p"]:
        assert paragraph in printed


def test_a_comparison_is_shown():
    rows = [
        ComparedRow(name=HOSTILE, made="x" * 9, bits_per_byte=index, covered=1.0)
        for index in range(6)
    ]
    comparison = Comparison(
        corpus="a", split="b", precision="float32", rows=rows, curves=(), savings=()
    )
    page = shown(comparison)
    assert page.found["td"][:2] == [HOSTILE, "0.0000"]
    assert repr(comparison).endswith("and 2 more)")


def test_a_bad_manifest_says_so_in_its_row(store):
    opened = fs.open_store(store)
    cache, fused = opened.open_cache("wide"), opened.open_fused("mince")
    (store / "caches/wide/manifest.json").write_bytes(b"{}")
    (store / "fused/mince/manifest.json").unlink()
    page = shown(opened)
    (row,) = (text for text in page.found["tr"] if text.startswith("cache/wide"))
    assert row.startswith("cache/widedamaged")
    assert "fusestore verify cache/wide" in row
    assert "cache/small" in page.text
    page = shown(cache)
    assert page.found["caption"] == ["cache/wide"]
    assert "fusestore verify cache/wide" in page.text
    page = shown(fused)
    assert "unfinished" in page.found["td"]


def test_what_cannot_be_read_costs_only_itself(store):
    opened = fs.open_store(store)
    cache, alignment = opened.open_cache("wide"), opened.open_alignment("wide--small")
    (store / "alignments/wide--small/unmatched.parquet").write_bytes(b"no")
    shutil.rmtree(store / "vocabularies")
    for handle in (cache, alignment):
        page = shown(handle)
        assert "complete" in page.found["td"]
        assert "Its rows cannot be shown: " in page.text
    shutil.rmtree(store / "caches")
    assert "no cache/wide" in shown(cache).text
    shutil.rmtree(store)
    assert "There is no store" in shown(opened).text
    assert "There is no store" in shown(cache).text
    assert "It is empty" in shown(fs.open_store(store.parent)).text


def test_names_and_tokens_of_strangers_are_text(store):
    (store / "caches" / "<b>bold").mkdir()
    opened = fs.open_store(store)
    html = opened._repr_html_()
    assert "<b>" not in html
    assert "cache/<b>bold" in shown(opened).found["td"]
    digest = opened.open_cache("wide").fingerprint.tokenizer_digest
    old = load_vocabulary(Store.open(store), digest)
    shutil.rmtree(Store.open(store).vocabulary(digest).path)
    tokens = (HOSTILE.encode(),) * len(old)
    save_vocabulary(store, Vocabulary(digest, tokens, old.kinds, old.roles))
    page = shown(opened.open_cache("wide"))
    assert f"'{HOSTILE}'" in page.found["table"][1]


def test_what_is_long_is_cut():
    rows = [[f"{index}", "x" * 10_000] for index in range(1_000)]
    page = _Parser(tables_html([ShownTable("t" * 9_999, ["number", "text"], rows)], ["n" * 9_999]))
    assert len(page.found["tr"]) == 1 + ROWS_SHOWN + 1
    assert page.found["td"][-1] == f"… and {1_000 - ROWS_SHOWN} more"
    assert len(page.text) < 30_000


def test_characters_that_mislead_are_escapes():
    text = "a\u202eb\x00\ud800\n$x$"
    html = tables_html([ShownTable("t", ["c"], [[text]])])
    html.encode()
    page = _Parser(html)
    assert page.found["td"] == ["a\\u202eb\\x00\\ud800\n$x$"]
    assert 'class="tex2jax_ignore mathjax_ignore"' in html


@pytest.mark.slow
def test_a_remote_store_is_shown_the_same(opened, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path))
    opened.push(f"{s3_url}/shown", ["fused/mince", "alignment/wide--small"])
    remote = fs.open_store(f"{s3_url}/shown")
    assert {"fused/mince", "alignment/wide--small"} == set(shown(remote).found["td"][::3])
    for name in ("open_alignment", "open_fused"):
        path = {"open_alignment": "wide--small", "open_fused": "mince"}[name]
        here, there = (shown(getattr(store, name)(path)) for store in (opened, remote))
        assert there.found["caption"] == here.found["caption"]
        assert there.found["details"] == here.found["details"]
    opened.push(f"{s3_url}/shown", ["cache/wide"])
    here, there = (shown(store.open_cache("wide")) for store in (opened, remote))
    assert there.found["table"][1] == here.found["table"][1]
    table = remote.open_cache("wide").to_polars(decode=True)
    assert table.equals(opened.open_cache("wide").to_polars(decode=True))
    rows = opened.open_fused("mince").to_polars()
    assert remote.open_fused("mince").to_polars().equals(rows)
