"""One tokenizer with two chat templates: aligned by the roles of markers, and never mixed up."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import fusestore as fs
from fusestore.corpus.tokenize import find_corpus_tokens
from fusestore.errors import FusestoreError, IncompatibleError, NotFoundError
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.resolve import find_inputs
from fusestore.models.model import Model
from fusestore.storage.location import Location
from tests.helpers.chat_models import CHATML, chat_tokenizer, conversation, write_conversations
from tests.helpers.command import Command
from tests.helpers.tiny_models import make_llama, save_model

# Turns that end by EOS behind a header of letters, in the same vocabulary.
OTHER = """\
{{- bos_token }}{%- for m in messages %}
{{- '\\n# ' + m['role'] + '\\n' + m['content'] + eos_token }}{%- endfor %}"""
# As many tokens as CHATML, and other ones.
SAME_LENGTH = CHATML.replace("<|im_start|>' + m", "<|im_end|>' + m")
TEMPLATES = {"chatml": CHATML, "other": OTHER, "same_length": SAME_LENGTH}
SETTINGS = fs.CaptureSettings(top_k=8, dtype="float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    file = write_conversations(folder / "chats.jsonl", 2)
    for name, template in TEMPLATES.items():
        tokenizer = chat_tokenizer("chatml")
        tokenizer.chat_template = template
        save_model(folder / name, make_llama(len(tokenizer), context=300), tokenizer)
    store = fs.open_store(str(folder / "store"))
    models = {name: Model.open(folder / name) for name in TEMPLATES}
    corpus = store.build_corpus(
        "chats", [str(file)], fs.CorpusSettings(max_length=300), tokenizers=list(models.values())
    )
    for name in ("chatml", "other"):
        store.capture(name, model=models[name], corpus=corpus, settings=SETTINGS)
    return SimpleNamespace(store=store, corpus=corpus, models=models, folder=folder)


def test_they_are_aligned_by_the_roles_of_markers(made):
    recipe = fs.Recipe(sources=("other",), target="chatml", top_k=8, window_length=300)
    with pytest.raises(
        NotFoundError, match=r"or another chat template, than the target.*align other"
    ):
        made.store.fuse("early", recipe)
    made.store.align("other", target="chatml")
    rows = made.store.fuse("both", recipe, materialize=True).dataset()
    fusion = find_inputs(made.store, recipe)
    [source] = fusion.sources
    own, target = (
        made.models[name].tokenizer._chat({}, None).identity.end_of_turn_id
        for name in ("other", "chatml")
    )
    assert own != target
    # The plan has the target's digest alone, which both templates share.
    plan = FusionPlan.load(Location.parse(str(made.folder / "store/fused/both/fingerprint.json")))
    again = find_inputs(made.store, plan.recipe, plan=plan)
    assert np.array_equal(again.sources[0].target_id, source.target_id)
    assert source.target_id[own] == target
    assert (
        np.delete(source.target_id, own).tolist()
        == np.delete(np.arange(len(source.target_id)), own).tolist()
    )
    marked = fusion.read(0, 2)
    # Every answer, from its first token to its marker, has a row of the source.
    masks = np.concatenate([rows[index]["fused_mask"].numpy() for index in range(len(rows))])
    assert masks.tolist() == np.append(marked.is_counted[1:], False).tolist()
    position, kind = source.alignment.for_documents(0, 2)
    firsts = np.flatnonzero(marked.is_counted & ~np.append(False, marked.is_counted[:-1]))
    cache = fs.open_cache(made.store, "other")
    ids, ends = cache.read_tokens(0, int(cache.document_offsets[-1]))
    document = np.repeat([0, 1], np.diff(marked.document_offsets))
    for first in firsts - 1:
        row = cache.document_offsets[document[first]] + position[first]
        assert kind[first] == 1
        assert ends[row] == marked.end_offsets[first]
        assert made.models["other"].tokenizer.vocabulary.token_bytes[ids[row]].endswith(b"\n")


def test_an_alignment_to_another_template_is_refused(made):
    made.store.align("other", target="chatml")
    made.store.align("other", target=made.models["same_length"], name="to-the-other")
    stored = find_corpus_tokens(made.corpus, made.models["chatml"].tokenizer.digest)
    assert len(stored) == 3
    assert len({tokens.manifest.num_tokens for tokens in stored}) == 2
    recipe = fs.Recipe(
        sources=({"cache": "other", "alignment": "to-the-other"},), target="chatml", top_k=8
    )
    with pytest.raises(IncompatibleError, match=r"'to-the-other' is to .* another chat template"):
        made.store.fuse("mixed", recipe)


def test_two_templates_that_write_the_same_need_no_alignment(made, tmp_path):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = CHATML + "{# A comment. #}"
    save_model(tmp_path / "same", make_llama(len(tokenizer), context=300), tokenizer)
    recipe = fs.Recipe(sources=("chatml",), target=str(tmp_path / "same"), top_k=8)
    assert find_inputs(made.store, recipe).sources[0].alignment is None


def test_a_changed_template_is_another_cache(made, tmp_path):
    """Neither tokens nor rows of one template are taken for those of another."""
    folder = shutil.copytree(made.folder / "chatml", tmp_path / "chatml")
    changed = folder / "chat_template.jinja"
    changed.write_text(changed.read_text().replace("Be kind.", "Be brief."))
    model = Model.open(folder)
    assert model.tokenizer.digest == made.models["chatml"].tokenizer.digest
    with pytest.raises(FusestoreError, match="template"):
        made.store.capture("chatml", model=model, corpus=made.corpus, settings=SETTINGS)
    renamed = made.store.capture("brief", model=model, corpus=made.corpus, settings=SETTINGS)
    first = fs.open_cache(made.store, "chatml").fingerprint
    assert renamed.fingerprint.template != first.template
    # Part of what the other file, of the corpus, depends on: its variables and its fallback.
    with pytest.raises(FusestoreError, match="template_variables"):
        made.store.build_corpus(
            "chats",
            [str(made.folder / "chats.jsonl")],
            fs.CorpusSettings(max_length=300, template_variables={"enable_thinking": False}),
            tokenizers=list(made.models.values()),
        )


def test_an_aligned_conversation_is_shown(made, capsys, monkeypatch):
    made.store.align("other", target="chatml")
    command = Command(capsys, monkeypatch)
    common = [
        "align",
        "other",
        "--target",
        "chatml",
        "--store",
        made.store.location,
        "--inspect",
        "0",
    ]
    out = command.succeeds(*common, "--width", "200").out
    assert "document 0 (chats.jsonl#0, segment 0): target tokens 0 to" in out
    # Each side's own header and markers, one above the other.
    assert "⟨<|im_start|>⟩" in out
    assert "⟨#⟩" in out
    assert out.count("\\x03") == 2 * 4
    # The tokens of a header are one line.
    [line] = [line for line in out.splitlines() if line.startswith("  0 <|im_start|> to 21")]
    assert line.endswith(
        "another target token ends at byte 2 too, and the last such token is aligned"
    )
    listed = command.succeeds(*common, "--json").out
    assert conversation(0)[1]["content"].split()[-1].rstrip(".") in out.replace("│", "")
    assert '"kind": "span"' in listed


def test_ids_beyond_the_model_are_named(made, tmp_path):
    tokenizer = chat_tokenizer("chatml")
    folder = save_model(tmp_path / "narrow", make_llama(len(tokenizer) - 1, context=300), tokenizer)
    before = set(made.store.names("caches"))
    with pytest.raises(
        IncompatibleError, match=r"Document 0 \(chats.jsonl#0, .*<\|im_end\|>.*331 ids"
    ):
        made.store.capture("narrow", model=folder, corpus=made.corpus, settings=SETTINGS)
    assert set(made.store.names("caches")) == before
