"""Files that are damaged, of another tokenizer, or hostile: one error, and nothing written."""

import io
import json
import pickle
import re
import struct
import zipfile

import numpy as np
import polars as pl
import pytest

from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.layout import Store
from tests.helpers.foreign_rows import make_teacher


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture
def refused(tmp_path, teacher):
    """The message of an import that must fail and leave no store."""

    def run(layout, path, **settings):
        store = Store.open(tmp_path / "store")
        with pytest.raises(FusestoreError) as caught:
            import_rows(
                store, "rows", layout, path, ImportSettings(**settings), model=teacher.tokenizer
            )
        assert not (tmp_path / "store").exists()
        return str(caught.value)

    return run


@pytest.fixture
def arrays(teacher):
    ids, logprobs = teacher.top(slice(None))
    return {
        "token_ids": teacher.tokens.token_ids.astype(np.int64),
        "document_offsets": teacher.tokens.document_offsets.copy(),
        "ids": ids,
        "logprobs": logprobs,
    }


CHANGES = {
    "nan": ("logprobs", (7, 0), np.nan, "Document 0 of rows.npz, row 7: an entry is nan"),
    "likely": ("logprobs", (7, 0), 0.5, "row 7: a log-probability is 0.5, above 0"),
    "mass": ("logprobs", (7, slice(None)), -0.1, "mass of 3.6193, above 1.*--values logits"),
    "id": ("ids", (7, 1), 300, "row 7: it has token id 300, and the vocabulary has ids 0 to 299"),
    "negative": ("ids", (7, 1), -1, "row 7: it has token id -1"),
    "twice": ("ids", (7, slice(None)), 5, "row 7: it has token id 5 twice"),
    "token": ("token_ids", 9, 300, "token id 300 at position 9.*another tokenizer"),
    "special": ("token_ids", 9, 1, "special token </s> .id 1. inside it, at position 9"),
    "bytes": ("token_ids", 9, None, "spells bytes that are no text"),
    "offsets": ("document_offsets", 1, 10**6, "document_offsets"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_numbers(refused, arrays, tmp_path, teacher, name):
    array, place, value, message = CHANGES[name]
    if value is None:
        value = teacher.tokenizer.vocabulary.token_bytes.index(b"\xff")
    arrays[array][place] = value
    np.savez(tmp_path / "rows.npz", **arrays)
    assert re.search(message, refused("numpy", tmp_path / "rows.npz"), re.DOTALL)


def test_wrong_shapes_and_missing_arrays(refused, arrays, tmp_path):
    np.savez(tmp_path / "rows.npz", **{**arrays, "ids": arrays["ids"][:-1]})
    assert "'ids' of int64 [212, 4]; expected an integer [213, 4]" in refused(
        "numpy", tmp_path / "rows.npz"
    )
    del arrays["ids"]
    np.savez(tmp_path / "less.npz", **arrays)
    assert "less.npz lacks the array 'ids'" in refused("numpy", tmp_path / "less.npz")


def test_shifted_labels(refused, arrays, tmp_path, teacher):
    """Rows one token too late do not fit the labels that are among their entries."""
    labels = np.roll(teacher.labels, 1)
    np.savez(tmp_path / "rows.npz", **arrays, label_logprob=labels)
    assert "The rows may be shifted" in refused("numpy", tmp_path / "rows.npz")


def test_arrays_of_objects_are_not_unpickled(refused, tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("code of a file was run",))

    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        data, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    data.write(pickle.dumps(np.array([Payload()], object)))
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("token_ids.npy", data.getvalue())
    assert "objects" in refused("numpy", tmp_path / "rows.npz")


def test_a_header_cannot_ask_for_memory(refused, tmp_path):
    data = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (2**60,)}
    np.lib.format.write_array_header_1_0(data, header)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "token_ids.npy").write_bytes(data.getvalue())
    assert "its header needs 9,223,372,036,854,775," in refused("numpy", folder)
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("token_ids.npy", data.getvalue())
    assert "its header needs" in refused("numpy", tmp_path / "rows.npz")


@pytest.mark.parametrize(
    "layout", ["numpy", "fusellm", "axolotl", "distillkit", "llama.cpp", "vllm"]
)
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".arrow", ".parquet", ".jsonl"])
def test_noise(refused, tmp_path, layout, suffix):
    """Any bytes under any name fail as an error of ours, which names the file."""
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(500))
    assert "noise" in refused(layout, path)


def llama_cpp_header(context, vocab_size, chunks):
    return b"_logits_" + struct.pack("<3i", context, vocab_size, chunks)


def test_llama_cpp_headers(refused, tmp_path):
    path = tmp_path / "base.kld"
    path.write_bytes(b"_logitz_" + bytes(12))
    assert "begins with b'_logitz_', not with b'_logits_'" in refused("llama.cpp", path)
    path.write_bytes(llama_cpp_header(512, 300, 2**31 - 1))
    assert "20 bytes, and 2147483647 chunks" in refused("llama.cpp", path)
    path.write_bytes(llama_cpp_header(-1, 300, 1))
    assert "must be positive" in refused("llama.cpp", path)
    # Two tokens have no row between them but none of the second half.
    path.write_bytes(llama_cpp_header(4, 301, 1) + bytes(16) + bytes(2 * 306))
    assert "rows over 301 ids, and the vocabulary has 300" in refused("llama.cpp", path)


def test_distillkit_needs_its_configuration(refused, tmp_path, teacher):
    record = {
        "input_ids": teacher.ids[0],
        "compressed_logprobs": [[0] * 16] * (len(teacher.ids[0]) - 1),
        "bytepacked_indices": [[0] * 5] * (len(teacher.ids[0]) - 1),
    }
    pl.DataFrame([record]).write_parquet(tmp_path / "data_0.parquet")
    assert "no compression_config.yaml beside" in refused("distillkit", tmp_path / "data_0.parquet")
    config = tmp_path / "compression_config.yaml"
    config.write_text("!!python/object/apply:os.system ['false']")
    assert "no configuration of DistillKit" in refused("distillkit", tmp_path / "data_0.parquet")
    config.write_text(json.dumps({"d": 301, "k": 10**9, "exact_k": 1, "residual_bins": []}))
    assert "no configuration of DistillKit" in refused("distillkit", tmp_path / "data_0.parquet")
    config.write_text(json.dumps({"d": 301, "k": 5, "exact_k": 5, "residual_bins": []}))
    message = refused("distillkit", tmp_path / "data_0.parquet")
    assert "'compressed_logprobs' has 16 bytes" in message
    assert "rows of 20" in message
    pl.DataFrame(
        [{"input_ids": [1, 2], "packed_indices": [[1]], "exact_values": [[0.5]]}]
    ).write_parquet(tmp_path / "data_0.parquet")
    assert "of DistillKit's first layout, and" in refused("distillkit", tmp_path / "data_0.parquet")
    config.write_text(json.dumps({"vocab_size": 300, "k": 5, "exact_k": 1, "polynomial_degree": 2}))
    assert "has no 'coeffs'" in refused("distillkit", tmp_path / "data_0.parquet")
    first = {"packed_indices": [[1]], "exact_values": [[0.5]], "coeffs": [[1.0] * 3]}
    for column, wrong in (
        ("packed_indices", [[1, 2]]),
        ("exact_values", [[0.5, 0.5]]),
        ("coeffs", [[1.0]]),
        ("coeffs", [[1.0] * 3] * 2),
    ):
        record = {"input_ids": [1, 2], **first, column: wrong}
        pl.DataFrame([record]).write_parquet(tmp_path / "data_0.parquet")
        assert f"{column!r}" in refused("distillkit", tmp_path / "data_0.parquet")


def test_records_that_lack_columns(refused, tmp_path, teacher):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [], "logprobs": [[1]]}))
    assert "Line 1 of rows.jsonl has no 'input_ids'" in refused("axolotl", path)
    path.write_text(json.dumps({"input_ids": [70, 71], "logprobs": [[{"token": "a"}]]}))
    assert "an entry that is not" in refused("axolotl", path)
    path.write_text(json.dumps({"input_ids": [70.5], "logprobs": [[]]}))
    assert "numbers that are no integers" in refused("axolotl", path)
    path.write_text(json.dumps({"prompt_token_ids": teacher.ids[0], "prompt_logprobs": None}))
    assert "Line 1 of rows.jsonl is no answer of vLLM" in refused("vllm", path)
    path.write_text('{"prompt_token_ids": [')
    assert "Line 1 of rows.jsonl is not JSON" in refused("vllm", path)
    pl.DataFrame([{"input_ids": teacher.ids[0], "per_step_logits": [[1.0]]}]).write_ipc_stream(
        tmp_path / "rows.arrow"
    )
    assert "no 'per_step_indices'" in refused("fusellm", tmp_path / "rows.arrow")


def test_names(refused, tmp_path):
    assert "Did you mean 'distillkit'" in refused("distilkit", tmp_path)
    assert "There is no file or folder" in refused("numpy", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no file of the format numpy" in refused("numpy", tmp_path / "empty")
    assert "is a URL" in refused("numpy", "https://x.org/rows.npz")


def test_a_truncated_table(refused, tmp_path, teacher):
    ids, logprobs = teacher.top(teacher.documents[0])
    record = {
        "input_ids": teacher.ids[0],
        "target_token_ids": ids.tolist(),
        "logprobs": logprobs.tolist(),
    }
    path = tmp_path / "rows.parquet"
    pl.DataFrame([record]).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "rows.parquet cannot be read as parquet" in refused("axolotl", path)
    with pytest.raises(InvalidInputError):
        import_rows(
            Store.open(tmp_path / "other"), "rows", "axolotl", path, model=teacher.tokenizer
        )


def test_a_truncated_stream(refused, tmp_path, teacher):
    """Its batches are whole; only the mark of the end is missing."""
    path = tmp_path / "rows.arrow"
    pl.DataFrame([{"input_ids": teacher.ids[0]}]).write_ipc_stream(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert "it lacks the mark of its end" in refused("fusellm", path)
