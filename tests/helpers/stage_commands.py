"""The tiny fusion of `tiny_job` as single commands."""

from tests.helpers.tiny_job import TOP_K


def stages(job, store):
    """The tiny fusion as single commands, by the stage's name."""
    shards = ["--top-k", str(TOP_K)]
    train = ["--fused", "mince", "--lr", "1e-3", "--batch-size", "4", "--max-steps", "4"]
    train += ["--precision", "float32", "--evaluate", "addresses/held_out"]
    cache = [*shards, "--corpus", "addresses", "--dtype", "float32"]
    commands = {
        "corpus": [
            *["corpus", f"{job}/texts.jsonl", "--name", "addresses"],
            *["-t", f"{job}/small", "-t", f"{job}/wide"],
            *["--split-column", "split", "--max-length", "128"],
        ],
        "small": ["capture", f"{job}/small", "--name", "small", *cache],
        "wide": ["capture", f"{job}/wide", "--name", "wide", *cache],
        "align": ["align", "wide", "--target", f"{job}/small"],
        "fuse": [
            *["fuse", "--source", "small", "--source", "wide", "--target", "small"],
            *["--strategy", "mince", "--name", "mince", *shards],
            *["--window-length", "64", "--materialize"],
        ],
        "baseline": ["train", f"{job}/small", "--name", "baseline", "--objective", "clm", *train],
        "fused": ["train", f"{job}/small", "--name", "fused", *train],
    }
    return {name: [*arguments, "--store", str(store)] for name, arguments in commands.items()}
