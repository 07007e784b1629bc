"""What every command prints with --json fits a published schema."""

import json
from pathlib import Path

import jsonschema
import pytest
from fusestore_cli.command_help import LazyCommand
from fusestore_cli.commands import COMMANDS

from tests.helpers.json_outputs import KEPT_STORE_LINES
from tests.helpers.stage_commands import stages
from tests.helpers.tiny_job import write_fusion
from tools.schemas import generate

SCHEMAS = Path(__file__).parents[2] / "schemas"

LINES = {
    "STAGE corpus": "output-corpus",
    "capture {job}/small -s {store} -n new --corpus addresses -k 8 --dtype float32": (
        "output-capture"
    ),
    "STAGE align": "output-align",
    "fuse -n mince -s {store}": "output-fuse",
    "STAGE fused": "output-train",
    "align wide -s {store} -t small --inspect 1": "output-align-document",
    "align --text Hello --source {job}/wide -t {job}/small": "output-align-document",
    "fuse -s {store} -n other --source small --source wide -t small -k 8": "output-fuse",
    "estimate {job}/small --fit --device-memory 2x24GiB": "output-estimate-fit",
    "run {fusion}": "output-run",
    "run {fusion} --dry-run": "output-run-dry-run",
    "run {fusion} --estimate": "output-run-estimate",
    "distill {job}/wide {job}/small {job}/texts.jsonl -f {tmp}/d.toml --dry-run": (
        "output-distill-dry-run"
    ),
    "demo --folder {tmp}/demo --dry-run": "output-distill-dry-run",
    "distill {job}/wide {job}/small {job}/texts.jsonl -s {tmp}/d -f {tmp}/e.toml "
    "--held-out-fraction 0": "output-run",
    "merge fused baseline -s {store} -n merged": "output-merge",
    "estimate {job}/small -s {store} --corpus addresses -k 8 --sample-tokens 64": (
        "output-estimate"
    ),
    "forecast -s {store} --source small --source wide -t small": "forecast",
    "compare -s {store} --source small --source wide --target small "
    "--evaluate addresses/held_out": ("output-compare"),
    "compare {job}/small -s {store} --evaluate addresses/held_out": "output-compare",
    "export cache/small {tmp}/rows.npz -s {store} --format numpy": "output-export",
    "import numpy {tmp}/rows.npz -s {store} -n again -t {job}/small": "output-import",
    "show corpus/addresses -s {store} --document 1": "output-show-corpus-document",
}
"""Command lines, and the schema of what they print; an import reads what the export before wrote.
"""

SLOW = (
    *("distill {job}/wide {job}/small {job}/texts.jsonl -s", "compare", "merge", "forecast"),
    *("align --text", "run {fusion} --estimate", "STAGE corpus"),
)


def test_every_command_has_a_schema():
    """Commands and schemas are found here, so that a new one without the other fails."""
    with_json = {
        entry.name
        for entry in COMMANDS
        if any("--json" in option.opts for option in LazyCommand(entry).load().params)
    }
    assert len(with_json) > 20
    checked = {line.split()[0] for line in (*LINES, *KEPT_STORE_LINES)} - {"STAGE"}
    assert with_json == checked | {"corpus", "align", "train"}
    published = {name.removesuffix(".json") for name in generate() if name.startswith("output-")}
    assert published | {"forecast"} == {*LINES.values(), *KEPT_STORE_LINES.values()}


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=pytest.mark.slow if line.startswith(SLOW) else ()) for line in LINES],
)
def test_output_fits_its_schema(command, job, store, tmp_path, line):
    words, _, rest = line.partition(" ")
    if words == "STAGE":
        arguments = stages(job, store)[rest]
    else:
        fusion = write_fusion(tmp_path, job, str(store)) if "{fusion}" in line else None
        arguments = line.format(job=job, store=store, tmp=tmp_path, fusion=fusion).split()
    if words == "import":
        rows = ["export", "cache/small", tmp_path / "rows.npz", "-s", store, "--format", "numpy"]
        command.succeeds(*rows)
    printed = command.succeeds(*arguments, "--json").json
    schema = json.loads((SCHEMAS / f"{LINES[line]}.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(printed)
