"""Fusions small enough to check with a pencil."""

from dataclasses import replace

import numpy as np
import pytest

from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows

SPAN, MINED, LABEL, FUSELLM = 1, 3, 4, 6


@pytest.fixture(scope="module")
def two_sources(helpers):
    """One document, "abcd", and two sources that read it in different tokens.

    Target (vocabulary: 0 = a, 1 = b, 2 = cd, 3 = ab): a | b | cd, ends 1, 2, 4.
    Source one is the target's own tokenizer: 1 bit for b, 2 bits for cd: 3 bits over 3 bytes.
    Source two (vocabulary: 0 = ab, 1 = c, 2 = d, 3 = cd) reads ab | c | d, ends 2, 3, 4:
        0.5 bit for c, 0.5 bit for d: 1 bit over 2 bytes. Its token ab ends with target token b
        and its d with target token cd; nothing of it ends with target token a.
    """
    target = helpers.table([[(0, 1), (1, 2), (2, 4)]])
    bit = -np.log(2.0)
    one = SourceInput(
        "one",
        helpers.cache(
            target,
            helpers.rows(
                [{1: 0.5, 2: 0.25, 3: 0.25}, {2: 0.25, 0: 0.25}, {0: 1.0}],
                3,
                [bit, 2 * bit, np.nan],
            ),
        ),
        "digest-one",
        "corpus",
    )
    two = SourceInput(
        "two",
        helpers.cache(
            helpers.table([[(0, 2), (1, 3), (2, 4)]]),
            helpers.rows(
                [{3: 0.5, 1: 0.25, 0: 0.125}, {2: 0.75}, {0: 0.5}],
                3,
                [0.5 * bit, 0.5 * bit, np.nan],
            ),
        ),
        "digest-two",
        "corpus",
        # ab → ab, c → cd (nearest), d → nothing, cd → cd.
        target_id=np.array([3, 2, -1, 2], np.int32),
        alignment=helpers.alignment(
            [(np.array([0, 0, 2], np.int32), np.array([MINED, SPAN, SPAN], np.uint8))]
        ),
        vocabulary_map_digest="map",
        alignment_digest="alignment",
    )
    return target, [one, two]


def fuse(two_sources, **choices):
    target, sources = two_sources
    weights = choices.pop("weights", (1.0, 1.0))
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "top_k": 3,
            "keep_label": False,
            "strategy": "mince",
            "sources": [
                {"cache": name, "weight": weight}
                for name, weight in zip(("one", "two"), weights, strict=True)
            ],
            **choices,
        }
    )
    fusion = prepare(
        recipe,
        sources,
        target_tokens=target,
        tokens_digest="tokens",
        documents=np.array([0]),
        vocab_size=4,
        corpus_digest="corpus",
    )
    return fuse_rows(fusion, 0, 3)


def probabilities(rows):
    return [
        {int(t): round(float(np.exp(p)), 6) for t, p in zip(ids, logprobs, strict=True) if p > -99}
        for ids, logprobs in zip(rows.ids, rows.logprobs, strict=True)
    ]


def test_mince_lets_the_lower_bits_per_byte_win_the_document(two_sources):
    rows, totals = fuse(two_sources, unaligned="label")
    assert rows.input_ids.tolist() == [0, 1, 2]
    assert rows.next_ids.tolist() == [1, 2, -100]
    # Two wins with 1/2 against 1 bit per byte, but its pair with target token a is only mined.
    assert rows.kind.tolist() == [LABEL, SPAN, SPAN]
    assert rows.source.tolist() == [-1, 1, 1]
    assert probabilities(rows) == [
        {1: 1.0},  # the label: the token after a
        {2: 0.75, 3: 0.125},  # cd and c summed
        {3: 0.5},
    ]
    np.testing.assert_allclose(np.exp(rows.tail), [0, 0.125, 0.5], atol=1e-6)
    assert [total.documents_won for total in totals] == [0, 1]
    assert [total.num_bytes for total in totals] == [3, 2]
    np.testing.assert_allclose([total.score_sum for total in totals], [1.0, 0.5], rtol=1e-6)
    assert [total.positions_used for total in totals] == [0, 2]
    assert (totals[1].positions_span, totals[1].positions_mined) == (2, 1)


def test_mined_pairs_supervise_when_the_recipe_accepts_them(two_sources):
    rows, _ = fuse(two_sources, kinds=["span", "mined"])
    assert rows.kind.tolist() == [MINED, SPAN, SPAN]
    assert probabilities(rows)[0] == {2: 0.75, 3: 0.125}


def test_weights_count_over_the_sources_aligned_at_a_position(two_sources):
    rows, _ = fuse(two_sources, strategy="weighted", weights=(3.0, 1.0))
    assert rows.source.tolist() == [0, -1, -1]
    assert probabilities(rows) == [
        {1: 0.5, 2: 0.25, 3: 0.25},
        # 3/4 · {2: 1/4, 0: 1/4} + 1/4 · {2: 3/4, 3: 1/8}
        {2: 0.375, 0: 0.1875, 3: 0.03125},
        {0: 0.75, 3: 0.125},
    ]
    np.testing.assert_allclose(np.exp(rows.tail), [0, 0.40625, 0.125], atol=1e-6)


def test_aligned_ce_scores_what_a_source_gives_the_bytes_of_the_targets_labels(two_sources):
    # One: −(ln 1/2 + ln 1/4) / 2 over two positions; two, over its one span position: c and then d
    # of half a bit each. Its projected row gives cd 3/4, because its c is mapped to cd.
    _, totals = fuse(two_sources, score="aligned_ce")
    np.testing.assert_allclose(
        [total.score_sum for total in totals], [np.log(8) / 2, np.log(2)], rtol=1e-6
    )


def test_a_row_holds_its_label_with_the_probability_of_its_bytes(two_sources):
    rows, _ = fuse(two_sources, keep_label=True)
    # Two gives cd one bit; the quarter that its projected row has more joins the tail.
    assert probabilities(rows)[1] == {2: 0.5, 3: 0.125}
    np.testing.assert_allclose(np.exp(rows.tail[1]), 0.375, atol=1e-6)
    mixed, _ = fuse(two_sources, strategy="weighted", weights=(3.0, 1.0), keep_label=True)
    # 3/4 · 1/4 + 1/4 · 1/2 for cd; the others as without the label.
    assert probabilities(mixed)[1] == {2: 0.3125, 0: 0.1875, 3: 0.03125}


def test_a_label_that_a_row_lacks_takes_its_mass_from_the_tail_and_the_place_of_the_last(
    two_sources,
):
    target, sources = two_sources
    one = replace(sources[0], cache=replace(sources[0].cache))
    one.cache.rows = replace(
        one.cache.rows, label_logprob=np.log(np.array([0.5, 0.125, np.nan], np.float32))
    )
    one.cache.rows.ids[1] = [3, 0, 1]
    one.cache.rows.logprobs[1] = np.log(np.array([0.5, 0.25, 0.0625], np.float32))
    one.cache.rows.tail[1] = np.log(np.float32(0.1875))
    rows, _ = fuse(
        (target, [one, sources[1]]), strategy="weighted", weights=(1.0, 0.0), keep_label=True
    )
    assert probabilities(rows)[1] == {3: 0.5, 0: 0.25, 2: 0.125}
    np.testing.assert_allclose(np.exp(rows.tail[1]), 0.125, atol=1e-6)


def test_token_granularity_spreads_bits_over_bytes(two_sources):
    # After a comes b: two never had to predict byte 2, so its document score 1/2 stands against
    # one's 1 bit for 1 byte, and it wins without a span pair. After b comes cd: one spent 2 bits
    # on 2 bytes, two 1 bit.
    rows, _ = fuse(two_sources, granularity="token")
    assert rows.kind.tolist() == [0, SPAN, SPAN]
    assert rows.source.tolist() == [-1, 1, 1]


def test_the_public_codes_fallback_is_reproduced_only_when_asked(two_sources):
    rows, _ = fuse(two_sources, unaligned="fusellm")
    assert rows.kind.tolist() == [FUSELLM, SPAN, SPAN]
    assert probabilities(rows)[0] == {0: 1.0}  # token a itself, not the one after it


def test_skip_leaves_a_position_that_says_nothing(two_sources):
    rows, _ = fuse(two_sources)
    assert rows.kind[0] == 0
    assert probabilities(rows)[0] == {}
    assert rows.tail[0] == 0.0
