"""MaxText's records, written by the real writer of array_record."""

import numpy as np
import pytest

from fusestore.cache.verify import verify_cache
from fusestore.errors import FusestoreError
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.interop.tf_example import example_type, parse_example
from fusestore.store.layout import Store
from tests.helpers.foreign_rows import make_teacher

module = pytest.importorskip("array_record.python.array_record_module")


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def example(**features):
    """A serialized Example."""
    message = example_type()[0]()
    for name, values in features.items():
        values = np.asarray(values).ravel()
        feature = message.features.feature[name]
        if values.dtype.kind == "f":
            feature.float_list.value.extend(values.astype(np.float32).tolist())
        else:
            feature.int64_list.value.extend(values.tolist())
    return message.SerializeToString()


def write(path, records):
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def sequences(teacher, packed):
    """One document a sequence, or two and padding."""
    parts = teacher.documents
    groups = [parts[:2], parts[2:]] if packed else [[part] for part in parts]
    for group in groups:
        tokens = [teacher.tokens.token_ids[part] for part in group]
        lengths = [len(each) for each in tokens]
        ids = np.concatenate([teacher.top(part)[0] for part in group])
        logits = np.take_along_axis(
            np.concatenate([teacher.logits[part] for part in group]), ids, axis=1
        )
        numbers = np.repeat(np.arange(1, len(group) + 1), lengths)
        targets = np.concatenate([np.append(each[1:], 0) for each in tokens])
        counts = numbers * np.concatenate([np.append(np.ones(n - 1, int), 0) for n in lengths])

        yield {
            "inputs": padded(np.concatenate(tokens)),
            "inputs_segmentation": padded(numbers),
            "inputs_position": padded(np.concatenate([np.arange(n) for n in lengths])),
            "targets": padded(targets),
            "targets_segmentation": padded(counts),
            "top_k_logits": padded(logits.astype(np.float32)),
            "top_k_indices": padded(ids),
            "sequence_hash": [-5],
        }


def padded(values):
    """With three tokens of padding."""
    return np.concatenate([values, np.zeros((3, *values.shape[1:]), values.dtype)])


@pytest.mark.parametrize("packed", [False, True])
def test_maxtext(tmp_path, teacher, packed):
    records = [example(**each) for each in sequences(teacher, packed)]
    (tmp_path / "rows").mkdir()
    half = len(records) // 2
    for number, part in enumerate((records[:half], records[half:])):
        write(tmp_path / f"rows/teacher_top_k_part_{number:05d}_host_000.array_record", part)
    store = Store.open(tmp_path / "store")
    settings = ImportSettings(profile="lossless")
    made = import_rows(
        store, "rows", "maxtext", tmp_path / "rows", settings, model=teacher.tokenizer
    )
    cache = made.artifact
    assert verify_cache(cache.location) == []
    assert not cache.fingerprint.known_tail
    assert not cache.fingerprint.known_labels
    np.testing.assert_array_equal(cache.tokens.token_ids, teacher.tokens.token_ids)
    for number, part in enumerate(teacher.documents):
        ids, logprobs = teacher.top(part)
        rows = cache.document(number)
        np.testing.assert_array_equal(rows.ids, ids)
        expected = logprobs - np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(rows.logprobs, expected, atol=1e-5)
        assert np.isnan(rows.tail).all()


@pytest.mark.parametrize("lacks", ["segmentation", "segmentation and position"])
def test_documents_without_their_numbers(tmp_path, teacher, lacks):
    """Positions tell where a document begins; without them a sequence is one."""
    (sequence, _) = sequences(teacher, packed=True)
    kept = {
        name: values[:-3] if len(values) > 1 else values
        for name, values in sequence.items()
        if not (name.endswith("segmentation") or name.startswith("targets"))
        and not ("position" in lacks and name == "inputs_position")
    }
    path = write(tmp_path / "a.array_record", [example(**kept)])
    store = Store.open(tmp_path / "store")
    made = import_rows(store, "rows", "maxtext", path, model=teacher.tokenizer)
    assert made.artifact.tokens.num_documents == (1 if "position" in lacks else 2)


WRONG = {
    "shifted": (
        lambda each: {**each, "targets": each["inputs"]},
        r"Record 0 of a\.array_record has target \d+ at token 0, and the next token is \d+",
    ),
    "no ids": (
        lambda each: {name: value for name, value in each.items() if name != "top_k_indices"},
        "has no feature 'top_k_indices'.*inputs",
    ),
    "other k": (
        lambda each: {**each, "top_k_indices": each["top_k_indices"][:, :-1]},
        "expected as many ids as logits",
    ),
    "floats": (
        lambda each: {**each, "inputs": each["inputs"].astype(float)},
        "no integers in the feature 'inputs'",
    ),
    "id": (lambda each: {**each, "top_k_indices": each["top_k_indices"] + 300}, "token id"),
    "length": (
        lambda each: {**each, "inputs_position": [0, 1]},
        "2 numbers in 'inputs_position'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_records(tmp_path, teacher, name):
    change, message = WRONG[name]
    (sequence, *_) = sequences(teacher, packed=False)
    path = write(tmp_path / "a.array_record", [example(**change(sequence))])
    with pytest.raises(FusestoreError, match=message):
        import_rows(
            Store.open(tmp_path / "store"), "rows", "maxtext", path, model=teacher.tokenizer
        )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["noise", "empty", "cut", "flipped", "no example", "pickle"])
def test_damaged_files(tmp_path, teacher, kind):
    sound = [example(**each) for each in sequences(teacher, packed=False)]
    path = write(tmp_path / "a.array_record", sound)
    data = bytearray(path.read_bytes())
    if kind == "noise":
        data = bytearray(np.random.default_rng(0).bytes(70_000))
    elif kind == "empty":
        data = bytearray()
    elif kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        # In the middle of what is not padding between blocks.
        written = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))
        data[written[len(written) // 2]] ^= 1
    path.write_bytes(data)
    if kind == "no example":
        write(path, [b"\xff" * 30])
    elif kind == "pickle":
        write(path, [b"\x80\x04}\x94."])
    with pytest.raises(FusestoreError, match=r"a\.array_record"):
        import_rows(
            Store.open(tmp_path / "store"), "rows", "maxtext", path, model=teacher.tokenizer
        )


def test_an_example_by_hand():
    """Bytes by the description of protobuf's encoding, not by its library."""
    floats = b"\x0a\x08" + np.array([1.5, -2.0], "<f4").tobytes()
    integers = b"\x0a\x0c\x03" + b"\xff" * 9 + b"\x01" + b"\x07"
    entries = [(b"f", 2, floats), (b"i", 3, integers)]
    data = b""
    for name, field, content in entries:
        feature = bytes([field << 3 | 2, len(content)]) + content
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        data += b"\x0a" + bytes([len(entry)]) + entry
    found = parse_example("here", b"\x0a" + bytes([len(data)]) + data)
    assert found["f"].tolist() == [1.5, -2.0]
    assert found["i"].tolist() == [3, -1, 7]
