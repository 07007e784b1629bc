"""Tars of a Megatron cache, made by hand from their description."""

import io
import pickle
import tarfile

import numpy as np
import polars as pl
import pytest
import torch
from backports import zstd

from fusestore.cache.verify import verify_cache
from fusestore.errors import FusestoreError
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.layout import Store
from tests.helpers.foreign_rows import K, make_teacher

LENGTH = 40


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def microbatch(teacher, parts):
    """Of sequences of `LENGTH` tokens; the rows of the first have one entry less."""
    shape = (LENGTH, len(parts), K + 1)
    values, ids = np.full(shape, -1e3), np.full(shape, -1)
    for number, part in enumerate(parts):
        ids[:, number, :K], values[:, number, :K] = teacher.top(part)
    values[:, 0, K - 1], ids[:, 0, K - 1] = -1e3, -1
    ids = ids & 0x1FFFF
    return {
        "values": torch.tensor(values, dtype=torch.float16),
        "indices_low": torch.tensor(ids & 0xFFFF, dtype=torch.int32).to(torch.uint16),
        "bit_17": torch.tensor(ids >> 16 == 1),
    }


def packed(content):
    data = io.BytesIO()
    torch.save(content, data)
    return zstd.compress(data.getvalue())


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def parts(teacher):
    """Four sequences of one length: the beginnings of the documents."""
    return [slice(part.start, part.start + LENGTH) for part in teacher.documents]


@pytest.fixture
def folder(tmp_path, teacher, parts):
    """Two tars: iteration 9 of two microbatches before 10, and one of a single dictionary."""
    folder = tmp_path / "rows"
    folder.mkdir()
    several = {
        "_meta.json": b'{"hash": "x", "saver": {"k": 5}}',
        "10.pt.zst": packed([microbatch(teacher, parts[2:3])]),
        "9.pt.zst": packed([microbatch(teacher, [part]) for part in parts[:2]]),
    }
    write_tar(folder / "cp0_dp0__9.tar", several)
    tokens = np.stack([teacher.tokens.token_ids[part] for part in parts])
    np.save(folder / "cp0_dp0__9.npy", tokens[:3])
    single = {"12.pt.zst": packed(microbatch(teacher, parts[3:]))}
    write_tar(folder / "cp0_dp0__12.tar", single)
    table = pl.DataFrame({"input_ids": tokens[3:].tolist()})
    table.write_parquet(folder / "cp0_dp0__12.parquet")
    return folder


def imported(tmp_path, teacher, path):
    store = Store.open(tmp_path / "store")
    settings = ImportSettings(profile="lossless")
    return import_rows(store, "rows", "megatron", path, settings, model=teacher.tokenizer).artifact


def test_megatron(tmp_path, teacher, folder, parts):
    cache = imported(tmp_path, teacher, folder)
    assert verify_cache(cache.location) == []
    assert cache.fingerprint.known_tail
    assert len(cache.fingerprint.origin.files) == 4
    assert cache.tokens.num_documents == 4
    for number, part in enumerate(parts):
        ids, logprobs = teacher.top(part)
        rows = cache.document(number)
        # Tokens of a character that is cut off are left out.
        count = len(rows.ids)
        assert count >= LENGTH - 3
        np.testing.assert_array_equal(
            cache.tokens.document(number)[0], teacher.tokens.token_ids[part][:count]
        )
        # Each microbatch has one sequence, the first.
        np.testing.assert_array_equal(rows.ids[:, : K - 1], ids[:count, : K - 1])
        kept = logprobs[:count, : K - 1]
        np.testing.assert_allclose(rows.logprobs[:, : K - 1], kept, atol=4e-3, rtol=1e-3)
        left = 1 - np.exp(kept).sum(axis=1)
        np.testing.assert_allclose(np.exp(rows.tail), left, atol=4e-3)


def test_ids_beyond_16_bits(tmp_path, teacher, parts):
    """Of a vocabulary of 300 they are refused by their number."""
    batch = microbatch(teacher, parts[:1])
    batch["bit_17"][5, 0, 0] = True
    wrong = int(batch["indices_low"][5, 0, 0]) + 65_536
    write_tar(tmp_path / "cp0_dp0__1.tar", {"1.pt.zst": packed(batch)})
    np.save(tmp_path / "cp0_dp0__1.npy", teacher.tokens.token_ids[parts[0]][None])
    with pytest.raises(FusestoreError, match=f"row 5: it has token id {wrong}"):
        imported(tmp_path, teacher, tmp_path / "cp0_dp0__1.tar")


class Runs:
    def __reduce__(self):
        return (print, ("code of the file was run",))


def changed(batch, **tensors):
    return {**batch, **tensors}


WRONG = {
    "no ids": (lambda _: None, None, "no token ids, and there is no cp0_dp0__1.npy"),
    "fewer": (lambda t: t[:0], None, "has more sequences than cp0_dp0__1.npy, which has 0"),
    "more": (lambda t: np.tile(t, (2, 1)), None, "more sequences than cp0_dp0__1.tar.* has 1"),
    "shorter": (lambda t: t[:, :-1], None, "rows for 40 tokens, and sequence 0 .* has 39"),
    "floats": (lambda t: t * 1.0, None, "expected token ids, integers"),
    "code": (
        None,
        lambda _: zstd.compress(pickle.dumps(Runs(), protocol=2)),
        "without running its code",
    ),
    "noise": (None, lambda _: b"noise" * 20, "cannot be read as zstd"),
    "cut": (None, lambda b: packed(b)[:-20], "cannot be read as zstd"),
    "names": (None, lambda b: packed({"values": b["values"]}), "does not hold the tensors"),
    "type": (
        None,
        lambda b: packed(changed(b, indices_low=b["bit_17"])),
        "indices_low of torch.bool",
    ),
    "shape": (
        None,
        lambda b: packed(changed(b, bit_17=b["bit_17"][1:])),
        r"bit_17 \[39, 1, 5\]; expected",
    ),
    "stride": (
        None,
        lambda b: packed(changed(b, values=torch.zeros(1).expand(10**7, 10**3, 5))),
        "tensors larger than its file",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path, teacher, parts, name, capsys):
    change_ids, change_data, message = WRONG[name]
    batch = microbatch(teacher, parts[:1])
    data = packed(batch) if change_data is None else change_data(batch)
    path = write_tar(tmp_path / "cp0_dp0__1.tar", {"1.pt.zst": data})
    tokens = teacher.tokens.token_ids[parts[0]][None]
    tokens = tokens if change_ids is None else change_ids(tokens)
    if tokens is not None:
        np.save(path.with_suffix(".npy"), tokens)
    with pytest.raises(FusestoreError, match=message):
        imported(tmp_path, teacher, path)
    assert not (tmp_path / "store").exists()
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cp1_dp0__1.tar", None, "rank 1 of context parallelism"),
        ("rows.tar", None, "is not named as the tars"),
        ("cp0_dp0__1.tar", b"no tar" * 100, "cannot be read as a tar"),
    ],
)
def test_other_tars(tmp_path, teacher, parts, name, data, message):
    path = tmp_path / name
    write_tar(path, {"1.pt.zst": packed(microbatch(teacher, parts[:1]))})
    np.save(path.with_suffix(".npy"), teacher.tokens.token_ids[parts[0]][None])
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FusestoreError, match=message):
        imported(tmp_path, teacher, path)


def test_a_bomb_is_not_unpacked(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr("fusestore.interop.megatron._MOST_BYTES", 2**20)
    path = write_tar(tmp_path / "cp0_dp0__1.tar", {"1.pt.zst": zstd.compress(bytes(2**22))})
    np.save(path.with_suffix(".npy"), np.zeros((1, 4), np.int64))
    with pytest.raises(FusestoreError, match="more than 1,048,576 bytes"):
        imported(tmp_path, teacher, path)
