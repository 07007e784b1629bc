"""Aligning takes memory for a shard, whatever the corpus' size."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from fusestore.align.stored import open_alignment
from fusestore.align.alignment_writer import write_alignment
from fusestore.tokenizers.vocabulary import Vocabulary
from fusestore.storage.location import Location

LENGTH = 2000
WORDS = tuple(bytes([97 + i % 26]) * (1 + i % 5) for i in range(1000))


class Stream:
    \"\"\"Documents made when asked for; two streams share about half of their ends.\"\"\"

    def __init__(self, num_documents, seed):
        self.document_offsets = np.arange(num_documents + 1, dtype=np.int64) * LENGTH
        self.seed = seed

    def read_tokens(self, start, stop):
        first, last = start // LENGTH, -(-stop // LENGTH)
        parts = [np.random.default_rng([self.seed, i]) for i in range(first, last)]
        ids = np.concatenate([part.integers(0, 1000, LENGTH, np.int32) for part in parts])
        ends = np.concatenate(
            [np.sort(part.choice(2 * LENGTH, LENGTH, replace=False)) + 1 for part in parts]
        )
        here = slice(start - first * LENGTH, stop - first * LENGTH)
        return ids[here], ends[here].astype(np.int32)


def align(num_documents, name):
    vocabularies = [Vocabulary(d * 64, WORDS, ("text",) * 1000, ()) for d in "ab"]
    write_alignment(
        Location.parse(sys.argv[1] + name), Stream(num_documents, 1), Stream(num_documents, 2),
        *vocabularies, source_cache_digest="c", source_corpus_digest="d", target_corpus_digest="d",
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


print(align(1000, "small"), align(int(sys.argv[2]), "large"))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times the tokens: 20 M would take 160 MB a side in tables alone."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{tmp_path}/", "10000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    small, large = map(int, result.stdout.split())
    assert large - small < 25, f"{small} MB for 2 M tokens, {large} MB for 20 M"
