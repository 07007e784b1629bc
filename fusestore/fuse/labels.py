"""The probability that a source gives the next target token, exactly, from the source's own rows.

A source with another tokenizer does not know the target's tokens, but it gives every stretch of
bytes a probability. From a row that has read the same bytes, the label's bytes are

    several whole source tokens         the product of their label probabilities
    the beginning of a source token     the mass of tokens whose text begins with those bytes
    both, one after the other           the product of both

A row of kind `inside` has read less than the target: `since` more bytes belong to the label of its
own. There all masses are divided by that of tokens that begin with these bytes. So the product over
a document is what the source gives the document, whatever the target's tokens are.

Masses are of a row's kept entries and of its own next token, the probability of which every cache
has. Mass in the tail is not known byte by byte: the beginning of a token is exact for whole rows,
and a lower bound, off by at most the tail, for others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import INSIDE, SPAN
from fusestore.cache.rows import Rows
from fusestore.fuse.project import begins_with
from fusestore.fuse.scores import MAX_NATS
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import NO_SPELLING, Spelling


@dataclass(frozen=True)
class Labels:
    """What a source gives the next token at each of n target positions.

    Attributes:
        logprob: float64 [n], log-probability; 0 where it is not found.
        found: bool [n]: whether the source has a row that has read the same bytes, the label has
            bytes, and the source's tokens spell them.
        since: int32 [n], bytes by which a row of kind `inside` is conditioned; 0 for others.
        following: int32 [n], the source's own next token there, which begins with those bytes.
        known: float32 [n], of the mass that may agree with the bytes since, the share in entries
            that do: mass / (mass + tail). 1 for `span`, 0 without such a row.
    """

    logprob: npt.NDArray[np.float64]
    found: npt.NDArray[np.bool_]
    since: npt.NDArray[np.int32]
    following: npt.NDArray[np.int32]
    known: npt.NDArray[np.float32]


def read_labels(
    tokens: TokenTable,
    rows: Rows,
    row: npt.NDArray[np.int64],
    kind: npt.NDArray[np.uint8],
    target: TokenTable,
    spelling: Spelling | None,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> Labels:
    """What a source gives the next token of every target token.

    Args:
        tokens: the source's tokens of D documents.
        rows: one per source token.
        row: int64 [n], index of the row aligned to each target token, −1 for none.
        kind: uint8 [n], alignment kind.
        target: the target's n tokens of the same documents.
        spelling: of the source's ids. None: labels that end inside a source token, and rows of
            kind `inside`, are not found.
        wanted: bool [n], the positions to read; the others get nothing. None: all.
    """
    if wanted is not None:
        row = np.where(wanted, row, -1)
    spelled = spelling or NO_SPELLING
    count = len(row)
    labels = Labels(
        np.zeros(count),
        np.zeros(count, np.bool_),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
    )
    _read_labels(
        *(row, kind, target.end_offsets, target.document_offsets),
        *(tokens.token_ids, tokens.end_offsets, tokens.document_offsets),
        *(rows.ids, rows.logprobs, rows.tail, rows.label_logprob),
        *(spelled.heads, spelled.data, spelled.offsets),
        *(labels.logprob, labels.found, labels.since, labels.following, labels.known),
    )
    return labels


def own_labels(rows: Rows, row: npt.NDArray[np.int64], has_label: npt.NDArray[np.bool_]) -> Labels:
    """`read_labels` for a source with the target's own tokens: its labels are the target's.

    Args:
        rows: one per source token.
        row: int64 [n], −1 for none.
        has_label: bool [n].
    """
    found = has_label & (row >= 0)
    logprob = np.zeros(len(row))
    # Not np.maximum, which NaN passes: a damaged cache is reported where it is scored.
    logprob[found] = np.maximum(rows.label_logprob[row[found]].astype(np.float64), -MAX_NATS)
    none = np.zeros(len(row), np.int32)
    return Labels(logprob, found, none, none, (row >= 0).astype(np.float32))


def without_unknown(labels: Labels) -> Labels:
    """The labels of a source that may lack some: what is NaN was not found."""
    unknown = np.isnan(labels.logprob)
    return replace(
        labels, logprob=np.where(unknown, 0.0, labels.logprob), found=labels.found & ~unknown
    )


def mixed_labels(
    labels: Sequence[Labels], weights: npt.NDArray[np.float64], where: slice
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """What a mixture of sources gives the next token, and how much of it is known.

    Args:
        labels: of each source, of n positions.
        weights: float64 [m, sources], of the m positions `where`.
        where: the m among the n.

    Returns:
        Probability float64 [m]; bool [m], whether it is exact: of some sources, all of which have
        it; and float32 [m], the weighted mean of `known`.
    """
    mass, missing, known = np.zeros((3, len(weights)))
    for index, each in enumerate(labels):
        _add_labels(
            *(weights[:, index], each.logprob[where], each.found[where], each.known[where]),
            *(mass, missing, known),
        )
    return mass, (missing == 0.0) & (mass > 0.0), known.astype(np.float32)


@numba.njit(cache=True)
def _add_labels(weights, logprob, found, known, out_mass, out_missing, out_known):
    for position in range(len(weights)):
        weight = weights[position]
        if weight > 0.0:
            out_known[position] += weight * known[position]
            if found[position]:
                out_mass[position] += weight * math.exp(logprob[position])
            else:
                out_missing[position] += weight


@numba.njit(cache=True)
def _beginning_mass(ids, logprobs, own, own_logprob, length, heads, data, offsets):
    """Mass of one row on tokens that begin with the first bytes of its own next token.

    Returns:
        `(entries, all)`: of the kept entries, and with the own token's exact mass.
    """
    entries = 0.0
    others = 0.0
    for entry in range(len(ids)):
        token = ids[entry]
        if logprobs[entry] == -math.inf or token < 0 or token >= len(heads):
            continue
        if begins_with(token, own, length, heads, data, offsets):
            mass = math.exp(np.float64(logprobs[entry]))
            entries += mass
            if token != own:
                others += mass
    return entries, others + math.exp(np.float64(own_logprob))


@numba.njit(cache=True)
def _spelled_until(at, end, token_ids, token_ends, data, offsets):
    """Bytes of token `at + 1` up to a document's byte `end`, which lies inside it.

    0 if the token does not spell the bytes that it covers. A space that the tokenizer adds before
    a document's first byte counts.
    """
    token = token_ids[at + 1]
    if token < 0 or token >= len(offsets) - 1:
        return 0
    length = offsets[token + 1] - offsets[token]
    start = token_ends[at]
    added = length - (token_ends[at + 1] - start)
    if added != 0 and not (added == 1 and start == 0 and data[offsets[token]] == 32):
        return 0
    until = end - start + added
    return until if 0 < until < length else 0


@numba.njit(cache=True)
def _read_labels(
    row,
    kind,
    ends,
    target_offsets,
    token_ids,
    token_ends,
    source_offsets,
    ids,
    logprobs,
    tail,
    label_logprob,
    heads,
    data,
    offsets,
    out_logprob,
    out_found,
    out_since,
    out_following,
    out_known,
):
    for document in range(len(target_offsets) - 1):
        target_stop, stop = target_offsets[document + 1], source_offsets[document + 1]
        for position in range(target_offsets[document], target_stop):
            at = row[position]
            if at < 0 or not (kind[position] == SPAN or kind[position] == INSIDE):
                continue
            logprob = 0.0
            out_known[position] = 1.0
            if kind[position] == INSIDE:
                out_known[position] = 0.0
                if at + 1 >= stop:
                    continue
                since = _spelled_until(at, ends[position], token_ids, token_ends, data, offsets)
                if since == 0:
                    continue
                own = token_ids[at + 1]
                entries, mass = _beginning_mass(
                    ids[at], logprobs[at], own, label_logprob[at], since, heads, data, offsets
                )
                out_since[position] = since
                out_following[position] = own
                if entries > 0.0:
                    out_known[position] = entries / (entries + math.exp(np.float64(tail[at])))
                # NaN, of a label that is not known, stays NaN.
                logprob -= -MAX_NATS if mass <= 0.0 else math.log(mass)
            if position + 1 >= target_stop or ends[position + 1] <= ends[position]:
                continue
            label_end = ends[position + 1]
            found = True
            while token_ends[at] < label_end:
                if at + 1 >= stop:
                    found = False
                    break
                if token_ends[at + 1] <= label_end:
                    logprob += np.float64(label_logprob[at])
                    at += 1
                    continue
                until = _spelled_until(at, label_end, token_ids, token_ends, data, offsets)
                if until == 0:
                    found = False
                    break
                _, mass = _beginning_mass(
                    *(ids[at], logprobs[at], token_ids[at + 1], label_logprob[at], until),
                    *(heads, data, offsets),
                )
                logprob += -MAX_NATS if mass <= 0.0 else math.log(mass)
                break
            if found:
                out_found[position] = True
                # Entries lie on a grid, so a mass may pass 1 by its step. A NaN stays.
                if logprob > 0.0:
                    logprob = 0.0
                if logprob < -MAX_NATS:
                    logprob = -MAX_NATS
                out_logprob[position] = logprob
