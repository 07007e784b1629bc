"""Licenses travel: from a model to its cache, and to all that is made from it."""

import json

import pytest
import yaml

import fusestore as fs
from fusestore.capture.run import _check_license
from fusestore.capture.settings import CaptureSettings
from fusestore.models.model import Model
from tests.helpers.lines import Lines
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer


@pytest.fixture
def opened(store):
    return fs.open_store(store)


def test_the_kept_store_has_them(opened):
    wide = opened.open_cache("wide").manifest.license
    assert (wide.id, wide.stated_in) == ("apache-2.0", "card")
    assert opened.open_cache("small").manifest.license is None
    fused = opened.open_fused("mince").manifest.made_from
    assert [(each.name, each.license) for each in fused] == [("small", None), ("wide", wide)]
    trained = json.loads((opened.model("fused") / "manifest.json").read_bytes())["made_from"]
    assert [(each["role"], each["name"]) for each in trained] == [
        ("base", "small"),
        ("teacher", "small"),
        ("teacher", "wide"),
    ]
    assert opened.open_corpus("addresses").license.id == "cc0-1.0"
    assert opened.describe("corpus/addresses").license == "cc0-1.0"
    assert opened.describe("model/fused").license == "small: unknown, wide: apache-2.0"
    # A license is no part of what another run must agree on.
    assert "license" not in opened.open_cache("wide").fingerprint.model_dump_json()


def test_they_come_with_a_copy_and_with_what_has_lost_its_inputs(opened, tmp_path):
    other = fs.open_store(tmp_path / "other")
    opened.push(other, ["model/fused"])
    used = other.publish(tmp_path / "out", dry_run=True).content.models_used
    assert {(each.role, each.name): str(each.license) for each in used} == {
        ("base", "small"): "None",
        ("teacher", "small"): "None",
        ("teacher", "wide"): "apache-2.0",
    }
    folder = Model.open(str(other.model("fused").path))
    # One of its inputs has a license that is unknown.
    assert folder.license is None


def test_all_of_them_make_that_of_a_card(opened, tmp_path):
    lines = Lines()
    licenses = {"cache/small": "gemma"}
    settings = fs.PublishSettings(inputs=True, license=licenses)
    published = opened.publish(
        tmp_path / "out", ["fused/mince"], settings, dry_run=True, reporter=lines
    )
    head = yaml.safe_load(published.card.split("---")[1])
    assert head["license"] == "other"
    assert set(head["license_name"].split("-")) >= {"gemma", "apache", "cc0"}
    assert published.content.unknown_licenses == ()
    unknown = opened.publish(tmp_path / "out", ["fused/mince"], dry_run=True, reporter=lines)
    assert "license" not in yaml.safe_load(unknown.card.split("---")[1])
    assert unknown.content.unknown_licenses == ("teacher small",)
    assert "**The license of teacher small is unknown.**" in unknown.card
    assert not (tmp_path / "out").exists()


def test_one_that_is_stated_later_is_not_lost_silently(opened):
    """A complete cache keeps its manifest, and the command says so."""
    lines = Lines()
    for name, named in (("small", "mit"), ("wide", "Apache-2.0")):
        settings = CaptureSettings(license=named)
        _check_license(opened.open_cache(name), name, settings, lines)
    (line,) = lines.said
    assert "fusestore publish --license cache/small=mit" in line


def test_a_stated_license_goes_before_a_found_one(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    save_model(tmp_path / "model", make_llama(len(tokenizer)), tokenizer)
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "a.txt").write_text("So be it.")
    made = fs.open_store(tmp_path / "store")
    models, text = [tmp_path / "model"], str(tmp_path / "a.txt")
    for stated in (None, "CC-BY-4.0", "cc0-1.0"):
        corpus = made.build_corpus(
            "texts", text, fs.CorpusSettings(license=stated), tokenizers=models
        )
        assert stated is None or str(corpus.license) == stated.lower()
    assert not any(made.verify().values())
    common = {"device": "cpu", "dtype": "float32"}
    found = made.capture("rows", models[0], corpus, fs.CaptureSettings(**common))
    assert str(found.manifest.license) == "mit"
    made.remove("cache/rows")
    stated = made.capture("rows", models[0], corpus, fs.CaptureSettings(**common, license="Own"))
    assert (stated.manifest.license.id, stated.manifest.license.name) == ("other", "Own")
    assert stated.digest == found.digest
    assert stated.fingerprint == found.fingerprint
    # A corpus is the same one whatever its license is, and its license goes with it.
    other = fs.open_store(tmp_path / "other")
    made.push(other, ["corpus/texts"])
    assert str(other.open_corpus("texts").license) == "cc0-1.0"
