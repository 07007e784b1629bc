"""What is exported and imported again is the same, within what the layout holds."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.verify import verify_cache
from fusestore.corpus.ingest import read_documents
from fusestore.errors import AlreadyExistsError, IncompatibleError, InvalidInputError
from fusestore.interop.distillkit_codec import CompressionConfig, decode_values, pack, unpack
from fusestore.interop.export import export_cache
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from tests.helpers.foreign_rows import make_teacher, written
from tests.helpers.small_store import make_small_store

FILES = {"numpy": "rows.npz", "safetensors": "rows.safetensors", "axolotl": "rows.parquet"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_small_store(folder / "store", folder)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def again(store, teacher, layout, path, **chosen):
    """The cache after an export and an import."""
    target = path / FILES.get(layout, layout)
    export_cache(store, "a", layout, target)
    name = "numpy" if layout == "safetensors" else layout
    made = import_rows(
        store, "b", name, target, ImportSettings(**chosen), model=teacher.tokenizer, corpus="a"
    )
    assert verify_cache(made.artifact.location) == []
    return made.artifact


def ids_by_value(cache):
    """The ids, equal values by rising id: a grid has many."""
    rows = cache[:]
    order = np.lexsort((rows.ids, -rows.logprobs), axis=-1)
    return np.take_along_axis(rows.ids, order, axis=1)


def check_equal(actual, expected, *, exact):
    """`exact`: tail and labels as well."""
    np.testing.assert_array_equal(actual.tokens.token_ids, expected.tokens.token_ids)
    np.testing.assert_array_equal(actual.tokens.end_offsets, expected.tokens.end_offsets)
    np.testing.assert_array_equal(actual[:].logprobs, expected[:].logprobs)
    np.testing.assert_array_equal(ids_by_value(actual), ids_by_value(expected))
    if exact:
        np.testing.assert_array_equal(actual.kept.runs, expected.kept.runs)
        np.testing.assert_array_equal(actual[:].tail, expected[:].tail)
        np.testing.assert_array_equal(actual[:].label_logprob, expected[:].label_logprob)
        assert actual.fingerprint.known_tail == expected.fingerprint.known_tail
        assert actual.manifest.scores == expected.manifest.scores


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    profile=st.sampled_from(["compact", "lossless", "fast"]),
    k=st.integers(1, 7),
    missing=st.sampled_from([0.0, 0.3]),
    layout=st.sampled_from(["numpy", "safetensors"]),
)
def test_plain_arrays_are_exact(tmp_path_factory, teacher, seed, profile, k, missing, layout):
    path = tmp_path_factory.mktemp("case")
    has_row = np.random.default_rng(seed).random(teacher.tokens.num_tokens) >= missing
    store, cache = written(path, teacher, profile=profile, has_row=has_row, k=k)
    assert verify_cache(cache.location) == []
    check_equal(again(store, teacher, layout, path, profile=profile), cache, exact=True)


@pytest.mark.parametrize("layout", ["axolotl", "distillkit"])
@pytest.mark.parametrize("profile", ["compact", "lossless"])
def test_layouts_of_trainers(tmp_path, teacher, layout, profile):
    """Entries are exact; the last token's row is lost, and labels outside the entries."""
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    has_row[teacher.tokens.document_offsets[1:] - 1] = False
    store, cache = written(tmp_path, teacher, profile=profile, has_row=has_row, k=5)
    made = again(store, teacher, layout, tmp_path, profile=profile)
    check_equal(made, cache, exact=False)
    np.testing.assert_array_equal(made.kept.runs, cache.kept.runs)
    assert made.fingerprint.known_tail
    assert not made.fingerprint.known_labels
    if profile == "lossless":
        np.testing.assert_allclose(np.exp(made[:].tail), np.exp(cache[:].tail), atol=1e-5)


def test_missing_rows(tmp_path, teacher):
    """DistillKit has a place for them, and axolotl has none between others."""
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    has_row[teacher.tokens.document_offsets[1:] - 1] = False
    has_row[[3, 4]] = False
    store, cache = written(tmp_path, teacher, profile="lossless", has_row=has_row, k=3)
    made = again(store, teacher, "distillkit", tmp_path, profile="lossless")
    np.testing.assert_array_equal(made.kept.runs, cache.kept.runs)
    with pytest.raises(IncompatibleError, match="Document 0 of cache 'a' lacks the rows of some"):
        export_cache(store, "a", "axolotl", tmp_path / "rows.parquet")
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".part")]


def test_parquet_and_datasets_hold_all(tmp_path, teacher):
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    has_row[3] = False
    store, cache = written(tmp_path, teacher, profile="compact", has_row=has_row, k=3)
    export_cache(store, "a", "parquet", tmp_path / "rows.parquet")
    export_cache(store, "a", "datasets", tmp_path / "saved")
    table = pl.read_parquet(tmp_path / "rows.parquet")
    assert table.equals(pl.read_ipc_stream(tmp_path / "saved" / "data-00000-of-00001.arrow"))
    assert table["document"].to_list() == [0, 1, 2, 3]
    whole = cache.to_polars()
    for column in ("ids", "logprobs", "tail", "label_logprob"):
        assert table[column].explode().equals(whole[column].alias(column))
    assert table["input_ids"].explode().to_list() == cache.tokens.token_ids.tolist()
    assert table["ids"][0].to_list()[3] is None
    # The reader of corpora knows such folders by state.json.
    with pytest.raises(InvalidInputError, match="input_ids"):
        read_documents(tmp_path / "saved", text_column="text")


def test_export_keeps_what_is_there(tmp_path, small):
    (tmp_path / "rows.parquet").write_text("mine")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        export_cache(small.store, "own", "parquet", tmp_path / "rows.parquet")
    with pytest.raises(InvalidInputError, match="There is no folder"):
        export_cache(small.store, "own", "parquet", tmp_path / "none" / "rows.parquet")
    assert (tmp_path / "rows.parquet").read_text() == "mine"


@given(
    bits=st.integers(1, 20),
    values=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=9),
)
def test_bits_are_those_of_the_text(bits, values):
    """Packing, digit by digit as text."""
    values = [value % 2**bits for value in values]
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    expected = [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]
    packed = pack(np.array([values]), bits)
    assert packed.tolist() == [expected]
    assert unpack(packed, bits, len(values)).tolist() == [values]


def test_decoded_values_of_every_kind():
    """A row by hand: an exact value, coefficients of 1 and √t, a bin of 3 bits and one of 1 bit."""
    config = CompressionConfig(
        d=10,
        k=6,
        exact_k=1,
        exact_dtype="bfloat16",
        polynomial_terms=[0, "sqrt"],
        residual_bins=[
            {"scale_dtype": "float32", "element_bits": 3, "num_elements": 2},
            {"scale_dtype": "float16", "element_bits": 1, "num_elements": 2},
        ],
        delta_encoding=False,
    )
    data = b"\x80\xbf"  # −1
    data += np.array([-2.0, -0.5], "<f4").tobytes()
    # 0 − 4 and 5 − 4, of scale 0.25.
    data += np.array([0.25], "<f4").tobytes() + bytes([0b00010100])
    # 2 · 1 − 1 and 2 · 0 − 1, of scale 0.5.
    data += np.array([0.5], "<f2").tobytes() + bytes([0b10000000])
    assert config.row_bytes == len(data)
    residuals = np.array([-1.0, 0.25, 0.5, -0.5, 0.0])
    expected = [-1.0, *(-2 - 0.5 * np.sqrt(np.arange(5)) + residuals)]
    row = np.frombuffer(data, np.uint8)[None]
    np.testing.assert_allclose(decode_values(row, config)[0], expected, atol=1e-6)
    summed = config.model_copy(update={"delta_encoding": True})
    np.testing.assert_allclose(decode_values(row, summed)[0], np.cumsum(expected), atol=1e-6)
