"""Each layout, written by hand from its description, and the rows that come of it."""

import json
import struct

import numpy as np
import polars as pl
import pytest

from fusestore.cache.verify import verify_cache
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.layout import Store
from tests.helpers.foreign_rows import K, check_rows, make_teacher

EXACT = ImportSettings(profile="lossless")


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture
def importing(tmp_path, teacher):
    """Imports files with the teacher's tokenizer; the cache is sound."""

    def run(layout, paths, settings=EXACT, *, model=teacher.tokenizer):
        store = Store.open(tmp_path / "store")
        cache = import_rows(store, "rows", layout, paths, settings, model=model).artifact
        assert verify_cache(cache.location) == []
        assert cache.fingerprint.origin.format == layout
        return cache

    return run


def documents(cache, teacher):
    """The rows of each document and the slice of the teacher, after a check of the tokens."""
    np.testing.assert_array_equal(cache.tokens.token_ids, teacher.tokens.token_ids)
    np.testing.assert_array_equal(cache.tokens.end_offsets, teacher.tokens.end_offsets)
    return [(cache.document(i), part) for i, part in enumerate(teacher.documents)]


def without_last(rows):
    return type(rows)(rows.ids[:-1], rows.logprobs[:-1], rows.tail[:-1], rows.label_logprob[:-1])


def check_unlabeled(rows, expected):
    """Labels are known exactly where they are among the entries."""
    hit = np.exp(expected.label_logprob) >= np.exp(expected.logprobs[:, -1])
    np.testing.assert_array_equal(np.isnan(rows.label_logprob), ~hit)
    np.testing.assert_allclose(rows.label_logprob[hit], expected.label_logprob[hit], atol=1e-5)


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_numpy(importing, teacher, tmp_path, kind):
    ids, logprobs = teacher.top(slice(None))
    # In any order of the entries.
    arrays = {
        "token_ids": teacher.tokens.token_ids,
        "document_offsets": teacher.tokens.document_offsets,
        "ids": np.ascontiguousarray(ids[:, ::-1]),
        "logprobs": np.ascontiguousarray(logprobs[:, ::-1].astype(np.float32)),
        "label_logprob": teacher.labels.astype(np.float32),
    }
    path = tmp_path / f"rows.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **arrays)
    elif kind == "npy":
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)
    cache = importing("numpy", path)
    assert (cache.fingerprint.only, cache.fingerprint.known_labels) == ("all", True)
    for rows, part in documents(cache, teacher):
        check_rows(rows, teacher.expected(part), atol=1e-5)


def test_numpy_logits_of_the_whole_vocabulary_tell_all(importing, teacher, tmp_path):
    np.savez(
        tmp_path / "rows.npz",
        token_ids=teacher.tokens.token_ids,
        document_offsets=teacher.tokens.document_offsets,
        ids=np.tile(np.arange(300), (teacher.tokens.num_tokens, 1)),
        logits=teacher.logits + 7,
    )
    cache = importing("numpy", tmp_path / "rows.npz", ImportSettings(profile="lossless", top_k=K))
    assert cache.fingerprint.known_tail
    assert cache.fingerprint.known_labels
    for rows, part in documents(cache, teacher):
        check_rows(rows, teacher.expected(part), atol=1e-5)


@pytest.fixture
def fusellm_files(tmp_path, teacher):
    """As FuseLLM saves it: float16 logits, padding, an optional loss of each token."""

    def write(*, losses):
        records = []
        for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
            ids, _ = teacher.top(part)
            logits = np.take_along_axis(teacher.logits[part], ids, axis=1).astype(np.float16)
            record = {
                "text": "unread",
                "input_ids": [*token_ids, 1, 1],
                "attention_mask": [1] * len(token_ids) + [0, 0],
                "per_step_logits": [*logits.tolist(), *[[0.0] * K] * 2],
                "per_step_indices": [*ids.tolist(), *[[0, 1, 2, 3]] * 2],
                "metric_ce": 1.0,
            }
            if losses:
                record["per_step_metric_ce"] = [*(-teacher.labels[part][:-1]).tolist(), 0.0, 0.0]
            records.append(record)
        folder = tmp_path / "fusellm"
        folder.mkdir()
        frame = pl.DataFrame(
            records, schema_overrides={"per_step_logits": pl.List(pl.List(pl.Float16))}
        )
        frame.write_ipc_stream(folder / "data-00000-of-00001.arrow")
        (folder / "state.json").write_text('{"_data_files": []}')
        return folder

    return write


def test_fusellm_knows_ratios_only(importing, teacher, fusellm_files):
    cache = importing("fusellm", fusellm_files(losses=False))
    assert not cache.fingerprint.known_tail
    assert not cache.fingerprint.known_labels
    for rows, part in documents(cache, teacher):
        ids, logprobs = teacher.top(part)
        # Rounded values may tie.
        np.testing.assert_array_equal(np.sort(rows.ids), np.sort(ids))
        # Float16 logits of up to 16 have steps of 1/128.
        np.testing.assert_allclose(
            rows.logprobs - rows.logprobs[:, :1], logprobs - logprobs[:, :1], atol=0.02
        )
        np.testing.assert_allclose(np.exp(rows.logprobs).sum(axis=1), 1, atol=1e-5)
        assert np.isnan(rows.tail).all()
        assert np.isnan(rows.label_logprob).all()


def test_fusellm_losses_are_the_labels(importing, teacher, fusellm_files):
    cache = importing("fusellm", fusellm_files(losses=True))
    assert not cache.fingerprint.known_tail
    assert cache.fingerprint.known_labels
    for rows, part in documents(cache, teacher):
        np.testing.assert_allclose(rows.label_logprob, teacher.labels[part], atol=1e-5)


def test_fusellm_renormalized_has_no_tail(importing, teacher, fusellm_files):
    settings = ImportSettings(profile="lossless", unknown_tail="renormalize")
    cache = importing("fusellm", fusellm_files(losses=False), settings)
    assert cache.fingerprint.known_tail
    for rows, _ in documents(cache, teacher):
        assert np.isneginf(rows.tail).all()


def axolotl_records(teacher, form):
    for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
        ids, logprobs = teacher.top(part)
        # Entry j is of token j: the row after the token before.
        ids, logprobs = ids[:-1].tolist(), logprobs[:-1].tolist()
        record = {"input_ids": token_ids, "labels": token_ids}
        if form == "v1":
            entries = [
                [
                    {"token": f"token_id:{token}", "logprob": value}
                    for token, value in zip(*row, strict=True)
                ]
                for row in zip(ids, logprobs, strict=True)
            ]
            yield record | {"llm_text_generation_vllm_logprobs": [None, *entries]}
        elif form == "v2":
            yield record | {"logprobs": logprobs, "target_token_ids": ids}
        else:
            nothing = [-float("inf")] * K
            norm = np.array(logprobs)
            norm -= np.log(np.exp(norm).sum(axis=1, keepdims=True))
            yield record | {
                "target_logprobs": [nothing, *norm.tolist()],
                "target_token_ids": [[0, 1, 2, 3], *ids],
                "target_mask": [[0] * K, *[[1] * K] * len(ids)],
            }


@pytest.mark.parametrize("form", ["v1", "v2", "collated"])
def test_axolotl(importing, teacher, tmp_path, form):
    records = list(axolotl_records(teacher, form))
    if form == "v1":
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in records))
    else:
        path = tmp_path / "rows.parquet"
        pl.DataFrame(records).write_parquet(path)
    cache = importing("axolotl", path)
    assert cache.fingerprint.known_tail == (form != "collated")
    assert cache.fingerprint.only == "imported"
    for rows, part in documents(cache, teacher):
        expected = without_last(teacher.expected(part))
        rows = without_last(rows)
        np.testing.assert_array_equal(rows.ids, expected.ids)
        if form == "collated":
            np.testing.assert_allclose(np.exp(rows.logprobs).sum(axis=1), 1, atol=1e-5)
        else:
            check_rows(rows, expected, atol=1e-5, labels=False)
            check_unlabeled(rows, expected)
    # The last token of each document has no row.
    lasts = cache.tokens.document_offsets[1:] - 1
    assert not cache.kept.mask(0, len(cache))[lasts].any()


def packed_bits(values, bits):
    """Ids as DistillKit packs them, digit by digit."""
    text = "".join(f"{int(value):0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def distillkit_row(values, config):
    """One row's bytes, after DistillKit's description: exact values, coefficients, bins."""
    numbers = list(values)
    if config["delta_encoding"]:
        numbers = [numbers[0], *np.diff(numbers)]
    exact, rest = numbers[: config["exact_k"]], np.array(numbers[config["exact_k"] :])
    code = {"float32": "f", "float16": "e"}[config["exact_dtype"]]
    data = b"".join(struct.pack(f"<{code}", value) for value in exact)
    terms = config["polynomial_terms"]
    if terms:
        places = np.arange(len(rest), dtype=float)
        columns = [np.sqrt(places) if t == "sqrt" else places**t for t in terms]
        fit = np.linalg.lstsq(np.stack(columns, axis=1), rest, rcond=None)[0]
        data += struct.pack(f"<{len(fit)}f", *fit)
        rest = rest - np.stack(columns, axis=1) @ np.float32(fit)
    at = 0
    for each in config["residual_bins"]:
        part = rest[at : at + each["num_elements"]]
        at += len(part)
        half = 2 ** (each["element_bits"] - 1)
        scale = np.float16(max(np.abs(part).max() / half, 1e-6))
        data += struct.pack("<e", scale)
        elements = np.clip(np.rint(part / float(scale)), -half, half - 1) + half
        data += bytes(packed_bits(elements, each["element_bits"]))
    return list(data)


CONFIGS = {
    "exact": {"exact_k": K, "delta_encoding": False},
    "half": {"exact_k": K, "exact_dtype": "float16"},
    "bins": {
        "exact_k": 1,
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 11, "num_elements": 2},
            {"scale_dtype": "float16", "element_bits": 7, "num_elements": 1},
        ],
    },
    "polynomial": {
        "exact_k": 2,
        "polynomial_terms": [0, 1],
        "delta_encoding": False,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_distillkit_compressed(importing, teacher, tmp_path, name):
    config = {
        "d": 301,
        "k": K,
        "exact_dtype": "float32",
        "polynomial_terms": [],
        "residual_bins": [],
        "term_dtype": "float32",
        "delta_encoding": True,
        "error_diffusion": False,
        "normalize_t": False,
        **CONFIGS[name],
    }
    records = []
    for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
        ids, logprobs = teacher.top(part)
        records.append(
            {
                # The sampler adds a padding token, so that the row before it is one of a prompt.
                "input_ids": [*token_ids, 1],
                "compressed_logprobs": [distillkit_row(row, config) for row in logprobs],
                "bytepacked_indices": [packed_bits(row, 9) for row in ids],
            }
        )
    folder = tmp_path / "samples"
    folder.mkdir()
    # JSON is YAML.
    (folder / "compression_config.yaml").write_text(json.dumps(config))
    pl.DataFrame(
        records,
        schema={
            "input_ids": pl.List(pl.UInt64()),
            "compressed_logprobs": pl.List(pl.List(pl.UInt8())),
            "bytepacked_indices": pl.List(pl.List(pl.UInt8())),
        },
    ).write_parquet(folder / "data_0.parquet")
    cache = importing("distillkit", folder)
    assert cache.fingerprint.known_tail
    assert len(cache.fingerprint.origin.files) == 2
    for rows, part in documents(cache, teacher):
        expected = teacher.expected(part)
        # Rows decoded with an error may swap neighbors.
        order = {"exact": 1e-5, "polynomial": 1e-4}.get(name, 0.02)
        np.testing.assert_allclose(rows.logprobs, expected.logprobs, atol=order)
        if order < 0.01:
            check_rows(rows, expected, atol=order, labels=False)


def first_words(ids, bits):
    """Ids as DistillKit's first layout packs them, by arithmetic on Python's integers."""
    each = 64 // bits
    groups = [ids[at : at + each] for at in range(0, len(ids), each)]
    return [sum(int(i) << (bits * place) for place, i in enumerate(group)) for group in groups]


@pytest.mark.parametrize("form", ["logprobs", "logits", "exact", "signed"])
def test_distillkit_first_layout(importing, teacher, tmp_path, form):
    exact_k = 9 if form == "exact" else 6
    # With 16 bits the fourth id of a word reaches its sign.
    bits = 16 if form == "signed" else 9
    config = {
        "vocab_size": 2**16 if form == "signed" else 300,
        "k": 9,
        "exact_k": exact_k,
        "polynomial_degree": 2,
        "invert_polynomial": form != "logits",
        "with_sqrt_term": form == "logits",
        "term_dtype": "float32",
    }
    points = np.arange(1.0, 10 - exact_k)
    powers = [points ** (power if form == "logits" else -power) for power in range(3)]
    terms = np.stack(powers + [np.sqrt(points)] * (form == "logits"), axis=1)
    records = []
    for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
        ids, values = teacher.top(part, 9)
        if form == "logits":
            centered = teacher.logits[part] - teacher.logits[part].mean(axis=1, keepdims=True)
            values = np.take_along_axis(centered, ids, axis=1)
        rest = values[:, exact_k:].T
        fit = np.linalg.lstsq(terms, rest, rcond=None)[0].T if exact_k < 9 else rest.T
        packed = np.array([first_words(row, bits) for row in ids], np.uint64)
        records.append(
            {
                "input_ids": [*token_ids, 1],
                "packed_indices": (packed.view(np.int64) if form == "signed" else packed).tolist(),
                "exact_values": np.float16(values[:, :exact_k]).tolist(),
                "coeffs": np.float32(fit).tolist(),
            }
        )
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(json.dumps(config))
    word = pl.Int64() if form == "signed" else pl.UInt64()
    schema = {
        "input_ids": pl.List(pl.UInt64()),
        "packed_indices": pl.List(pl.List(word)),
        "exact_values": pl.List(pl.List(pl.Float32())),
        "coeffs": pl.List(pl.List(pl.Float32())),
    }
    pl.DataFrame(records, schema=schema).write_parquet(folder / "data_0.parquet")
    cache = importing("distillkit", folder)
    assert cache.fingerprint.known_tail == (form != "logits")
    for rows, part in documents(cache, teacher):
        ids, expected = teacher.top(part, 9)
        # Three values are three coefficients, so only their rounding is lost, or four of float16.
        if form == "logits":
            expected = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(rows.logprobs, expected, atol=0.02)
        np.testing.assert_array_equal(np.sort(rows.ids), np.sort(ids))


def test_distillkit_plain_and_packed(importing, teacher, tmp_path):
    """Documents of one record by the numbers in its attention mask; a missing rank has any id."""
    ids, logprobs = teacher.top(slice(None))
    logprobs[5, 2:], ids[5, 2:] = -np.inf, 10**9
    mask = np.repeat(np.arange(1, 5), np.diff(teacher.tokens.document_offsets))
    record = {
        "input_ids": [*teacher.tokens.token_ids.tolist(), 0],
        "attention_mask": [*mask.tolist(), 0],
        "token_ids": ids.tolist(),
        "top_values": logprobs.tolist(),
    }
    pl.DataFrame([record]).write_parquet(tmp_path / "data_0.parquet")
    cache = importing("distillkit", tmp_path / "data_0.parquet")
    assert cache.fingerprint.only == "all"
    rows = cache[:]
    np.testing.assert_array_equal(cache.tokens.token_ids, teacher.tokens.token_ids)
    np.testing.assert_allclose(rows.logprobs[:5], teacher.expected(slice(0, 5)).logprobs, atol=1e-5)
    assert np.isneginf(rows.logprobs[5, 2:]).all()
    np.testing.assert_allclose(rows.tail[5], np.log(1 - np.exp(logprobs[5, :2]).sum()), atol=1e-4)


def base_file(path, chunks, logits, vocab_size):
    """A file as llama.cpp's `log_softmax` of tools/perplexity writes it."""
    context = len(chunks[0])
    data = b"_logits_" + struct.pack("<3i", context, vocab_size, len(chunks))
    for chunk in chunks:
        data += struct.pack(f"<{context}i", *chunk)
    for rows in logits:
        for row in rows[context // 2 : context - 1]:
            low = max(row.min(), row.max() - 16)
            total = np.log(np.exp(row - row.max()).sum())
            scale = np.float32((row.max() - low) / 65535)
            values = np.where(row > low, np.rint((row - low) / scale), 0).astype("<u2")
            data += struct.pack("<2f", scale, low - row.max() - total) + values.tobytes()
            data += b"\0\0" * (vocab_size % 2)
    path.write_bytes(data)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_llama_cpp(importing, tmp_path, adds_bos):
    teacher = make_teacher(adds_bos=adds_bos)
    first = 1 if adds_bos else 0
    parts = [slice(part.start + first, part.start + first + 13) for part in teacher.documents]
    chunks = [teacher.tokens.token_ids[part].tolist() for part in parts]
    base_file(tmp_path / "base.kld", chunks, [teacher.logits[part] for part in parts], 300)
    settings = ImportSettings(profile="lossless", top_k=K)
    cache = importing("llama.cpp", tmp_path / "base.kld", settings, model=teacher.tokenizer)
    assert cache.fingerprint.add_bos == adds_bos
    for index, part in enumerate(parts):
        # Rows of tokens 6 to 11 of 13.
        rows, token_ids = cache.document(index), cache.tokens.document(index)[0]
        if adds_bos:
            assert token_ids[0] == teacher.tokenizer.bos_id
        np.testing.assert_array_equal(token_ids[1:], chunks[index][1:])
        start = int(cache.document_offsets[index])
        assert cache.kept.mask(start, start + 13).tolist() == [False] * 6 + [True] * 6 + [False]
        expected = teacher.expected(slice(part.start + 6, part.start + 12))
        got = [values[6:12] for values in (rows.ids, rows.logprobs, rows.tail, rows.label_logprob)]
        np.testing.assert_array_equal(got[0], expected.ids)
        np.testing.assert_allclose(got[1], expected.logprobs, atol=3e-4)
        np.testing.assert_allclose(np.exp(got[2]), np.exp(expected.tail), atol=1e-3)
        known = ~np.isnan(got[3])
        np.testing.assert_allclose(got[3][known], expected.label_logprob[known], atol=3e-4)
        # What is not known lies 16 nats or more below.
        assert np.all(expected.label_logprob[~known] < expected.logprobs[~known, 0] - 15.9)


def served_lines(teacher, server):
    for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
        ids, logprobs = teacher.top(part)
        rows = [
            list(zip(*row, strict=True))
            for row in zip(ids.tolist(), logprobs.tolist(), strict=True)
        ]
        labels = list(zip(token_ids[1:], teacher.labels[part][:-1].tolist(), strict=True))
        if server == "sglang":
            yield {
                "text": "unread",
                "meta_info": {
                    "input_token_logprobs": [
                        [None, token_ids[0], None],
                        *[[value, token, None] for token, value in labels],
                    ],
                    "input_top_logprobs": [
                        None,
                        *[[[value, token, None] for token, value in row] for row in rows[:-1]],
                    ],
                },
            }
            continue
        listed: list[object] = [None]
        for index, (row, label) in enumerate(zip(rows[:-1], labels, strict=True)):
            whole = teacher.logprobs[part][index]
            entries = dict([*row, label])
            listed.append(
                {
                    str(token): {"logprob": value, "rank": int((whole > value).sum()) + 1}
                    for token, value in entries.items()
                }
            )
        answer = {"prompt_token_ids": token_ids, "prompt_logprobs": listed}
        yield answer if server == "vllm" else {"choices": [answer], "prompt_logprobs": None}


@pytest.mark.parametrize("server", ["vllm", "vllm-choices", "sglang"])
def test_answers_of_servers(importing, teacher, tmp_path, server):
    lines = [json.dumps(each) for each in served_lines(teacher, server)]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n")
    settings = ImportSettings(profile="lossless", top_k=K)
    cache = importing(server.partition("-")[0], tmp_path / "answers.jsonl", settings)
    assert cache.fingerprint.known_labels
    for rows, part in documents(cache, teacher):
        check_rows(without_last(rows), without_last(teacher.expected(part)), atol=1e-5)
