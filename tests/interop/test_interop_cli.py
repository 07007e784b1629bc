"""`fusestore import` and `fusestore export` as a user types them."""

import json

import numpy as np
import polars as pl
import pytest

from tests.helpers.foreign_rows import make_teacher


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer's folder, and rows of all but each document's last token."""
    folder = tmp_path_factory.mktemp("files")
    teacher = make_teacher()
    teacher.tokenizer._hugging_face.save_pretrained(folder / "tokenizer")
    records = []
    for part, token_ids in zip(teacher.documents, teacher.ids, strict=True):
        ids, logprobs = teacher.top(part)
        records.append(
            {
                "input_ids": token_ids,
                "logprobs": logprobs[:-1].tolist(),
                "target_token_ids": ids[:-1].tolist(),
            }
        )
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def test_import_show_verify_export(command, files, tmp_path):
    store = tmp_path / "store"
    options = ("-s", store, "-t", files / "tokenizer", "--profile", "lossless")
    done = command.succeeds("import", "axolotl", files / "rows.jsonl", "-n", "teacher", *options)
    assert "Imported cache teacher: 209 rows of at most 4 entries for 213 tokens" in done.out
    assert "Some next tokens' probabilities are not known." in done.out
    again = command.succeeds(
        "import", "axolotl", files / "rows.jsonl", "-n", "teacher", *options, "--json"
    )
    assert not again.json["built"]
    assert again.json["fingerprint"]["origin"]["files"][0]["name"] == "rows.jsonl"
    shown = command.succeeds("show", "cache/teacher", "-s", store).out
    assert "209 imported of 213 tokens" in shown
    assert "rows.jsonl" in shown
    command.succeeds("verify", "-s", store)
    assert (
        "no row"
        in command.succeeds("show", "cache/teacher", "-s", store, "-d", "0", "--rows", "99").out
    )
    exported = command.succeeds(
        "export",
        "cache/teacher",
        tmp_path / "again.parquet",
        "-s",
        store,
        "-f",
        "axolotl",
        "--json",
    )
    assert exported.json["num_tokens"] == 213
    table = pl.read_parquet(tmp_path / "again.parquet")
    given = [json.loads(line) for line in (files / "rows.jsonl").read_text().splitlines()]
    for record, row in zip(given, table.iter_rows(named=True), strict=True):
        assert row["target_token_ids"] == record["target_token_ids"]
        np.testing.assert_allclose(row["logprobs"], record["logprobs"], atol=1e-6)


def test_wrong_usage(command, files, tmp_path):
    place = ("-n", "x", "-s", tmp_path / "store")
    given = ("-t", files / "tokenizer")
    wrong = command("import", "axolotle", files / "rows.jsonl", *place, *given)
    assert (wrong.code, "Did you mean 'axolotl'" in wrong.err) == (1, True)
    wrong = command("import", "axolotl", files / "rows.jsonl", *place)
    assert (wrong.code, "one of the two" in wrong.err) == (2, True)
    wrong = command("import", "axolotl", files / "none.jsonl", *place, *given)
    assert (wrong.code, "There is no file or folder" in wrong.err) == (1, True)
    wrong = command("export", "cache/x", tmp_path / "out", "-s", tmp_path / "store")
    assert wrong.code == 1
    wrong = command("export", "cache/x", tmp_path / "out", "-s", tmp_path / "store", "-f", "parket")
    assert "Did you mean 'parquet'" in wrong.err
    wrong = command("export", "corpus/x", tmp_path / "out", "-s", tmp_path / "store")
    assert (wrong.code, "is no cache" in wrong.err) == (2, True)
    assert not (tmp_path / "store").exists()
