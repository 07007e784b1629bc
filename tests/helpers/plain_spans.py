"""Pairs of kind `span` and `inside` as their definitions say, found by comparing every pair."""

from __future__ import annotations

import numpy as np


def plain_span(source_ends, target_ends):
    """The last source token that ends where the last target token of an offset ends; −1: none."""
    last_source = {int(end): i for i, end in enumerate(source_ends)}
    last_target = {int(end): i for i, end in enumerate(target_ends)}
    return [
        last_source.get(int(end), -1) if last_target[int(end)] == i else -1
        for i, end in enumerate(target_ends)
    ]


def plain_inside(source_pieces, source_ends, target_ends):
    """The row before the source token inside which the last target token of an offset ends.

    A source token's first byte is known if it spells as many bytes as it covers, or one more at the
    start of a document, where tokenizers add a space. The first token has no row before it.
    """
    source_ends, target_ends = [int(end) for end in source_ends], [int(end) for end in target_ends]
    result = [-1] * len(target_ends)
    for place, end in enumerate(target_ends):
        for token in range(1, len(source_ends)):
            start, stop = source_ends[token - 1], source_ends[token]
            added = start == 0 and source_pieces[token].startswith(b" ")
            lengths = [stop - start, stop + 1] if added else [stop - start]
            if start < end < stop and len(source_pieces[token]) in lengths:
                result[place] = token - 1
        if end in target_ends[place + 1 :]:
            result[place] = -1
    return result


def of_kind(position, kinds, *wanted):
    """The positions whose kind is one of these, and −1 elsewhere."""
    return np.where(np.isin(kinds, wanted), position, -1).tolist()


def never_falls(positions):
    """Whether the positions that are not −1 stand in order."""
    paired = [position for position in positions if position >= 0]
    return paired == sorted(paired)
