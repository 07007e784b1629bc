"""The text of a card, and how it is joined with what people wrote."""

import html
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.store.licenses import License, joint_license, license_id
from fusestore.workflows.publishing.card_figures import CardContent, ModelUsed
from fusestore.workflows.publishing.card_text import card_body, card_head, escaped
from fusestore.workflows.publishing.front_matter import joined_card, merged_head, split_card

HOSTILE = "x | y\n<script>alert(1)</script> [a](javascript:b) `c` ![d](e) --> <!-- End -->"


def content(**changes):
    values = dict.fromkeys(CardContent.model_fields, ())
    values |= {"license": None, "fusestore_version": "1", **changes}
    return CardContent(**values)


def teacher(name="teacher", model=None, under="apache-2.0", **changes):
    return ModelUsed(
        role="teacher",
        name=name,
        model=model,
        architecture="LlamaForCausalLM",
        revision=None,
        license=License.of(under, "user"),
        tokenizer_digest="0" * 64,
        tokenizer_length=5,
        digest="1" * 64,
    ).model_copy(update=changes)


@given(st.text(max_size=60))
def test_text_of_strangers_is_shown_as_it_is(text):
    shown = escaped(text)
    assert not re.search(r"[<>\n]|(?<!\\)[|`*_\[\]#]|://", re.sub("&#[0-9]+;", "", shown))
    plain = html.unescape(re.sub(r"\\([\\`*_{}\[\]#|!~$])", r"\1", shown))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert plain == line


def test_a_hostile_name_stays_in_its_cell():
    used = teacher(model=HOSTILE, under=HOSTILE)
    body = card_body(content(models_used=(used,)), "s3://b/x", model_id=None)
    card = joined_card(None, escaped(HOSTILE), {"tags": [HOSTILE]}, body)
    assert "<script" not in card.partition("\n---\n")[2]
    row = next(line for line in card.splitlines() if line.startswith("| teacher"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8
    parts = split_card(card)
    assert parts.head == parts.written == {"tags": [HOSTILE]}
    assert split_card(joined_card(parts, "", {"tags": []}, "")).before == parts.before


@given(
    st.dictionaries(
        st.sampled_from(["license", "tags", "a"]),
        st.text(st.characters(codec="utf-8"), max_size=20) | st.lists(st.text("-<>ab", max_size=5)),
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40),
)
def test_what_is_written_is_read_back(head, text):
    parts = split_card(joined_card(None, "title", head, escaped(text)))
    assert parts.head == parts.written == head
    assert (parts.before, parts.after) == ("# title", "")
    # A second publication changes nothing, and a third one with other keys only those.
    card = joined_card(parts, "other", head, escaped(text))
    assert card == joined_card(split_card(card), "other", head, escaped(text))
    changed = split_card(joined_card(parts, "title", {"b": 1}, ""))
    assert changed.head == {"b": 1}


def test_keys_that_a_person_changed_stay():
    parts = split_card(joined_card(None, "t", {"license": "mit", "tags": ["fusestore"]}, ""))
    edited = split_card(
        joined_card(parts, "t", {"license": "mit", "tags": ["fusestore"]}, "").replace(
            "license: mit\n", "license: gemma\nlanguage: en\n", 1
        )
    )
    assert merged_head(edited, {"license": "apache-2.0", "tags": ["fusestore", "zarr"]}) == {
        "license": "gemma",
        "language": "en",
        "tags": ["fusestore", "zarr"],
    }


def test_a_card_of_a_person_alone():
    card = joined_card(split_card("Mine.\n"), "t", {"license": "mit"}, "ours")
    assert card.startswith("---\nlicense: mit\n---\n\nMine.\n\n<!-- ")
    with pytest.raises(InvalidInputError, match="no YAML table"):
        split_card("---\n- a: [\n---\nMine.\n")


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache License 2.0 (SmolLM2-135M-Instruct, Hugging Face)", "apache-2.0"),
        ("Apache Software License", "other"),
        ("The MIT License", "mit"),
        ("mitigation of risks", "other"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("Gemma Terms of Use (Gemma 3 270M, Google)", "gemma"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("Own License", "other"),
    ],
)
def test_identifiers(text, identifier):
    assert license_id(text) == identifier


def test_several_licenses_are_other_with_their_names():
    mit, gemma = License.of("MIT License", "card"), License.of("gemma", "card")
    assert joint_license([mit, mit]).id == "mit"
    both = joint_license([mit, gemma])
    assert (both.id, both.name) == ("other", "mit (MIT License), gemma")
    assert joint_license([mit, None]) is None
    assert joint_license([]) is None
    head = card_head(content(license=both), is_model=False)
    assert head["license"] == "other"
    assert head["license_name"] == "mit-mit-license-gemma"
    assert json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(head)))) == head


def test_bases_of_a_model():
    base = teacher(model="me/base", role="base")
    head = card_head(content(models_used=(base, teacher(model="package:x"))), is_model=True)
    assert (head["base_model"], head["base_model_relation"]) == (["me/base"], "finetune")
