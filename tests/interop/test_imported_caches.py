"""What fusing, forecasting, showing and repairing make of imported caches."""

import json

import numpy as np
import pytest

import fusestore as fs
from fusestore.align.run import align
from fusestore.cache.verify import verify_cache
from fusestore.errors import FingerprintMismatchError, FusestoreError, IncompatibleError
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shard import fuse_rows
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.inventory import find_artifact
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.workflows.repair import repair_store
from tests.helpers.foreign_rows import make_teacher
from tests.helpers.tiny_models import TEXTS, train_tokenizer


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def given(path, teacher, *, keep=None, labels=True, **more):
    ids, logprobs = teacher.top(slice(None))
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    if keep is not None:
        has_row &= keep
    arrays = {
        "token_ids": teacher.tokens.token_ids,
        "document_offsets": teacher.tokens.document_offsets,
        "has_row": has_row,
        "ids": ids[has_row],
        "logprobs": logprobs[has_row],
    }
    if labels:
        arrays["label_logprob"] = teacher.labels[has_row]
    np.savez(path, **(arrays | more))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory, teacher):
    """Caches of one corpus: `whole`, `few` without some rows, `bare` without labels, `ratios`."""
    folder = tmp_path_factory.mktemp("imported")
    opened = Store.open(folder / "store")
    keep = np.random.default_rng(0).random(teacher.tokens.num_tokens) > 0.3
    few = {"keep": keep}
    for name, choices in {"whole": {}, "few": few, "bare": {"labels": False}}.items():
        path = given(folder / f"{name}.npz", teacher, **choices)
        import_rows(
            *(opened, name, "numpy", path, ImportSettings(profile="lossless")),
            model=teacher.tokenizer,
            corpus="texts",
        )
    ids, _ = teacher.top(slice(None))
    logits = np.take_along_axis(teacher.logits, ids, axis=1)
    np.savez(
        folder / "ratios.npz",
        token_ids=teacher.tokens.token_ids,
        document_offsets=teacher.tokens.document_offsets,
        ids=ids,
        logits=logits,
    )
    for name, tail in {"ratios": "mark", "renormalized": "renormalize"}.items():
        import_rows(
            *(opened, name, "numpy", folder / "ratios.npz", ImportSettings(unknown_tail=tail)),
            model=teacher.tokenizer,
            corpus="texts",
        )
    return opened


def fused(store, teacher, *sources, **choices):
    recipe = Recipe(sources=[{"cache": name} for name in sources], top_k=8, **choices)
    fusion = find_inputs(store, recipe, teacher.tokenizer)
    return fuse_rows(fusion, 0, teacher.tokens.num_tokens)


def test_rows_that_are_there_are_fused_as_if_all_were(store, teacher):
    """Positions without a row are unaligned, and nothing else changes."""
    whole, _ = fused(store, teacher, "whole")
    few, _ = fused(store, teacher, "few")
    kept = fs.open_cache(store, "few").kept.mask(0, teacher.tokens.num_tokens)
    np.testing.assert_array_equal(few.kind == 1, kept)
    np.testing.assert_array_equal(few.ids[kept], whole.ids[kept])
    np.testing.assert_array_equal(few.logprobs[kept], whole.logprobs[kept])
    assert np.isneginf(few.logprobs[~kept]).all()


def test_labels_that_are_not_known_change_no_entry(store, teacher):
    whole, _ = fused(store, teacher, "whole", keep_label=False)
    bare, _ = fused(store, teacher, "bare", keep_label=False)
    np.testing.assert_array_equal(bare.ids, whole.ids)
    np.testing.assert_array_equal(bare.logprobs, whole.logprobs)


@pytest.mark.parametrize("granularity", ["document", "window", "token"])
@pytest.mark.parametrize("score", ["bits_per_byte", "aligned_ce", "token_ce"])
def test_sources_without_rows_are_scored_by_those_they_have(store, teacher, granularity, score):
    """Bytes without a row do not make a source look certain: the copy with all rows is as good."""
    choices = {"strategy": "mince", "granularity": granularity, "score": score}
    rows, _ = fused(store, teacher, "whole", "few", **choices)
    alone, _ = fused(store, teacher, "whole")
    used = np.isfinite(rows.logprobs).any(axis=1)
    assert used.all()
    np.testing.assert_allclose(rows.logprobs, alone.logprobs, atol=1e-6)


def test_unlike_sources_cannot_be_compared_without_labels(store, teacher):
    with pytest.raises(IncompatibleError, match="'bare' was imported from rows that do not tell"):
        fused(store, teacher, "whole", "bare", strategy="mince")
    rows, _ = fused(store, teacher, "whole", "bare", strategy="uniform", keep_label=False)
    alone, _ = fused(store, teacher, "whole", keep_label=False)
    np.testing.assert_allclose(rows.logprobs, alone.logprobs, atol=1e-6)


def test_an_unknown_tail_is_refused_or_renormalized(store, teacher):
    with pytest.raises(IncompatibleError, match="--unknown-tail renormalize"):
        fused(store, teacher, "ratios")
    rows, _ = fused(store, teacher, "renormalized")
    _, logprobs = teacher.top(slice(None))
    norm = logprobs - np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(rows.logprobs[:, :4], norm, atol=1 / 16)


def test_another_tokenizer_reads_partial_rows(store, teacher):
    """Through an alignment, labels of several tokens meet what is missing."""
    target = Tokenizer(train_tokenizer(TEXTS[::2], 270), "target")
    for name in ("whole", "few", "bare"):
        align(store, name, target)
    count = target.encode(fs.open_corpus(store, "texts").texts(), add_bos=False).num_tokens
    results = {}
    for name in ("whole", "few", "bare"):
        recipe = Recipe(sources=[{"cache": name}], top_k=8, keep_label=False, target=target.digest)
        fusion = find_inputs(store, recipe, target)
        results[name], _ = fuse_rows(fusion, 0, count)
    whole, few, bare = results["whole"], results["few"], results["bare"]
    spans = whole.kind == 1
    np.testing.assert_array_equal(bare.logprobs[spans], whole.logprobs[spans])
    used = spans & (few.kind == 1)
    assert 0 < used.sum() < spans.sum()
    np.testing.assert_array_equal(few.logprobs[used], whole.logprobs[used])
    for rows in results.values():
        assert not np.isnan(rows.logprobs).any()


def test_forecasts(store):
    opened = fs.open_store(store.location)
    settings = fs.ForecastSettings(split="train")
    result = opened.forecast(fs.Recipe(sources=["whole", "few"]), settings)
    assert result.verdict
    with pytest.raises(IncompatibleError, match="'bare' was imported"):
        opened.forecast(fs.Recipe(sources=["whole", "bare"]), settings)


def test_show_tells_the_origin(store):
    artifact = find_artifact(store, "cache/few")
    assert "imported from numpy" in artifact.kind.describe(artifact.manifest)
    settings = fs.open_store(store.location).describe("cache/few").settings
    assert settings["origin.format"] == "numpy"


@pytest.mark.parametrize(("name", "shown"), [("ratios", "unknown"), ("renormalized", "0.000")])
def test_no_mass_outside_the_entries_is_not_an_unknown_one(store, name, shown):
    artifact = find_artifact(store, f"cache/{name}")
    view = artifact.kind.view_document(store, artifact, 0, 3)
    (table,) = view.tables
    assert {line[table.columns.index("tail")] for line in table.rows} == {shown}
    json.dumps(view.content, allow_nan=False)


def test_a_repair_asks_for_the_files(store):
    file = store.cache("bare") / "logprobs/c/0/0"
    data = file.read_bytes()
    try:
        file.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert verify_cache(store.cache("bare"))
        repair = repair_store(store, "cache/bare")["cache/bare"]
        assert "`fusestore import numpy` again with bare.npz" in repair.problem
    finally:
        file.path.write_bytes(data)


def test_the_same_import_is_there_already(store, teacher, tmp_path):
    path = given(tmp_path / "whole.npz", teacher)
    exact = ImportSettings(profile="lossless")
    again = import_rows(store, "whole", "numpy", path, exact, model=teacher.tokenizer)
    assert not again.created
    other = given(tmp_path / "other.npz", teacher, labels=False)
    with pytest.raises(FingerprintMismatchError, match="rm cache/whole"):
        import_rows(store, "whole", "numpy", other, exact, model=teacher.tokenizer)


def test_a_corpus_without_the_texts(store, teacher, tmp_path):
    path = given(tmp_path / "rows.npz", teacher)
    fs.open_store(store.location).build_corpus(
        "others", _text(tmp_path), fs.CorpusSettings(max_length=None)
    )
    with pytest.raises(IncompatibleError, match="holds none of the 4 texts"):
        import_rows(store, "new", "numpy", path, model=teacher.tokenizer, corpus="others")
    assert "new" not in store.names("caches")


def _text(folder):
    (folder / "other.txt").write_text("Something else.")
    return folder / "other.txt"


def test_special_tokens_are_spelled_if_asked(teacher, tmp_path):
    """A conversation in ids: the spelling of its markers is text, and the tokens stay."""
    ids = teacher.tokens.token_ids.copy()
    ids[9] = 1
    path = given(tmp_path / "rows.npz", teacher, token_ids=ids, labels=False)
    store = Store.open(tmp_path / "store")
    spelled = ImportSettings(special_tokens="spell")
    cache = import_rows(store, "rows", "numpy", path, spelled, model=teacher.tokenizer).artifact
    np.testing.assert_array_equal(cache.tokens.token_ids, ids)
    corpus = fs.open_corpus(store, "rows")
    assert "</s>" in corpus.texts()[0]
    ends = cache.tokens.end_offsets
    assert ends[9] - ends[8] == len("</s>")
    # Its tokens are not those of the tokenizer, so it is aligned like any other source.
    with pytest.raises(FusestoreError, match="align"):
        find_inputs(store, Recipe(sources=[{"cache": "rows"}], top_k=4), teacher.tokenizer)
    align(store, "rows", teacher.tokenizer)
    recipe = Recipe(sources=[{"cache": "rows"}], top_k=4)
    rows, _ = fuse_rows(find_inputs(store, recipe, teacher.tokenizer), 0, 20)
    assert (rows.kind[:5] == 1).all()


def test_an_end_of_text_is_left_out(teacher, tmp_path):
    ids = np.append(teacher.tokens.token_ids, [1, 1])
    offsets = teacher.tokens.document_offsets.copy()
    offsets[-1] += 2
    more = {"token_ids": ids, "document_offsets": offsets}
    entries, logprobs = teacher.top(slice(None))
    more |= {
        "has_row": np.ones(len(ids), np.bool_),
        "ids": np.append(entries, [[0, 1, 2, 3]] * 2, axis=0),
        "logprobs": np.append(logprobs, [[-2.0] * 4] * 2, axis=0),
    }
    path = given(tmp_path / "rows.npz", teacher, labels=False, **more)
    store = Store.open(tmp_path / "store")
    cache = import_rows(store, "rows", "numpy", path, model=teacher.tokenizer).artifact
    np.testing.assert_array_equal(cache.tokens.token_ids, teacher.tokens.token_ids)
    assert cache.fingerprint.only == "all"
