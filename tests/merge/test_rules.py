"""Each rule against its formula, written out in float64 one element at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.merge import rules


def vectors(seed, count, size):
    rng = np.random.default_rng(seed)
    made = rng.normal(0, 1, (count, size))
    # Elements that are equal, zero, and of equal magnitude with either sign.
    made[:, ::5] = 0.0
    made[:, 1::7] = np.sign(made[:, 1::7]) * 0.5
    return made.astype(np.float32)


def tensors(arrays):
    return [torch.from_numpy(array.copy()).reshape(-1, 1) for array in arrays]


CASE = {
    "seed": st.integers(0, 2**32 - 1),
    "count": st.integers(1, 4),
    "size": st.integers(1, 40),
}


@settings(deadline=None)
@given(**CASE)
def test_linear(seed, count, size):
    arrays = vectors(seed, count, size)
    weights = (np.random.default_rng(seed).random(count) + 0.01).tolist()
    expected = [
        sum(w * float(a[i]) for w, a in zip(weights, arrays, strict=True)) / sum(weights)
        for i in range(size)
    ]
    got = rules.linear(tensors(arrays), weights)
    np.testing.assert_allclose(got.numpy()[:, 0], expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(seed=CASE["seed"], size=st.integers(2, 40), share=st.floats(0, 1))
def test_slerp(seed, size, share):
    one, other = vectors(seed, 2, size).astype(np.float64)
    norms = math.sqrt(sum(one**2) * sum(other**2))
    cosine = sum(one * other) / norms if norms else 1.0
    if abs(cosine) > 1 - 1e-9:
        return
    angle = math.acos(cosine)
    expected = (math.sin((1 - share) * angle) * one + math.sin(share * angle) * other) / math.sin(
        angle
    )
    left, right = tensors([one.astype(np.float32), other.astype(np.float32)])
    got = rules.slerp(left, right, share)
    np.testing.assert_allclose(got.numpy()[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_slerp_stays_on_the_sphere_and_turns_evenly():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for share in (0.0, 0.25, 0.5, 1.0):
        expected = [math.cos(share * math.pi / 2), math.sin(share * math.pi / 2)]
        np.testing.assert_allclose(rules.slerp(one, other, share).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, 0.0])
def test_slerp_of_one_direction_is_linear(factor):
    one = torch.tensor([0.6, -0.8, 2.0])
    got = rules.slerp(one, factor * one, 0.25)
    np.testing.assert_allclose(got.numpy(), (0.75 + 0.25 * factor) * one.numpy(), rtol=1e-6)


@settings(deadline=None)
@given(**CASE, scale=st.floats(-2, 2))
def test_task_arithmetic(seed, count, size, scale):
    base, *arrays = vectors(seed, count + 1, size)
    weights = np.random.default_rng(seed).normal(0, 1, count).tolist()
    expected = [
        float(base[i])
        + scale
        * sum(w * (float(a[i]) - float(base[i])) for w, a in zip(weights, arrays, strict=True))
        for i in range(size)
    ]
    base_tensor = tensors([base])[0]
    got = rules.task_arithmetic(base_tensor, tensors(arrays), weights, scale)
    np.testing.assert_allclose(got.numpy()[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(base_tensor.numpy()[:, 0], base)


def ties_by_hand(base, arrays, weights, scale, density):
    """Algorithm 1 of the paper: trim, elect, disjoint mean; float64, one parameter at a time.

    Also says where the election is decided by rounding: there either sign is right.
    """
    # The differences are taken in float32 by what is tested; ties must break alike.
    task = [(a - base).astype(np.float64) for a in arrays]
    kept = []
    for vector in task:
        wanted = max(1, math.floor(len(vector) * density))
        smallest = sorted(abs(vector))[-wanted]
        kept.append([value if abs(value) >= smallest else 0.0 for value in vector])
    merged, undecided = [], []
    for i in range(len(base)):
        total = sum(w * vector[i] for w, vector in zip(weights, kept, strict=True))
        agree = [
            (w, vector[i])
            for w, vector in zip(weights, kept, strict=True)
            if total != 0 and np.sign(vector[i]) == np.sign(total)
        ]
        mean = sum(w * v for w, v in agree) / sum(w for w, _ in agree) if agree else 0.0
        merged.append(float(base[i]) + scale * mean)
        size = sum(abs(w * vector[i]) for w, vector in zip(weights, kept, strict=True))
        undecided.append(size > 0 and abs(total) < 1e-6 * size)
    return np.array(merged), np.array(undecided)


@settings(deadline=None, max_examples=200)
@given(**CASE, scale=st.floats(0.1, 2), density=st.floats(0.01, 1), even=st.booleans())
def test_ties(seed, count, size, scale, density, even):
    base, *arrays = vectors(seed, count + 1, size)
    weights = [1.0] * count
    if not even:
        weights = (np.random.default_rng(seed).integers(1, 5, count) / 4).tolist()
    parts = slice(0, size // 2), slice(size // 2, size)

    def threshold(array):
        pieces = [torch.from_numpy((array - base)[part].copy()) for part in parts]
        return rules.magnitude_threshold(lambda: pieces, density)

    thresholds = [threshold(array) for array in arrays]
    got = np.concatenate(
        [
            rules.ties(
                tensors([base[part]])[0],
                tensors([array[part] for array in arrays]),
                weights,
                scale,
                thresholds,
            ).numpy()[:, 0]
            for part in parts
        ]
    )
    expected, undecided = ties_by_hand(base, arrays, weights, scale, density)
    np.testing.assert_allclose(got[~undecided], expected[~undecided], rtol=1e-4, atol=1e-5)


def shares_by_hand(vectors):
    squares = [sum(value**2 for value in vector) for vector in vectors]
    return [square / sum(squares) if sum(squares) else 1 / len(squares) for square in squares]


@settings(deadline=None)
@given(**CASE)
def test_varm(seed, count, size):
    base, *arrays = vectors(seed, count + 1, size)
    task = [(a - base).astype(np.float64) for a in arrays]
    shares = shares_by_hand(task)
    expected = [
        sum(w * float(a[i]) for w, a in zip(shares, arrays, strict=True)) for i in range(size)
    ]
    got = rules.varm(tensors([base])[0], tensors(arrays))
    np.testing.assert_allclose(got.numpy()[:, 0], expected, rtol=1e-5, atol=1e-6)


def sce_by_hand(base, arrays, density):
    """Select, calculate, erase, in float64, one element at a time; as `ties_by_hand`."""
    task = [(a - base).astype(np.float64) for a in arrays]
    varies = [float(np.var([vector[i] for vector in task])) for i in range(len(base))]
    wanted = max(1, math.floor(sum(value > 0 for value in varies) * density))
    chosen = sorted(range(len(base)), key=lambda i: -varies[i])[: wanted if density < 1 else None]
    kept = [[v[i] if i in chosen else 0.0 for i in range(len(base))] for v in task]
    shares = shares_by_hand(kept)
    merged, undecided = [], []
    for i in range(len(base)):
        total = sum(vector[i] for vector in kept)
        agree = [
            (w, vector[i])
            for w, vector in zip(shares, kept, strict=True)
            if total != 0 and np.sign(vector[i]) == np.sign(total)
        ]
        weight = sum(w for w, _ in agree)
        merged.append(float(base[i]) + (sum(w * v for w, v in agree) / weight if agree else 0.0))
        size = sum(abs(vector[i]) for vector in kept)
        undecided.append(size > 0 and abs(total) < 1e-6 * size)
    return np.array(merged), np.array(undecided)


@settings(deadline=None, max_examples=200)
@given(**CASE, density=st.floats(0.01, 1))
def test_sce(seed, count, size, density):
    # No two elements vary alike, so that what is selected is certain.
    rng = np.random.default_rng(seed)
    base, *arrays = rng.normal(0, 1, (count + 2, size)).astype(np.float32)
    got = rules.sce(tensors([base])[0], tensors(arrays), density).numpy()[:, 0]
    expected, undecided = sce_by_hand(base, arrays, density)
    np.testing.assert_allclose(got[~undecided], expected[~undecided], rtol=1e-4, atol=1e-5)


def test_sce_takes_the_first_of_elements_that_vary_alike():
    moved = rules.sce(torch.zeros(2, 3), [torch.ones(2, 3), torch.zeros(2, 3)], 0.5)
    assert moved.tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_models_that_have_not_moved_leave_the_base(density):
    base = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    assert torch.equal(rules.varm(base, [base.clone(), base.clone()]), base)
    assert torch.equal(rules.sce(base, [base.clone(), base.clone()], density), base)


@settings(deadline=None)
@given(
    seed=CASE["seed"],
    size=st.integers(1, 300),
    density=st.floats(0.001, 1),
    spread=st.floats(0.0, 30.0),
)
def test_the_threshold_is_the_exact_element(seed, size, density, spread):
    rng = np.random.default_rng(seed)
    vector = rng.normal(0, 1, size) * np.exp(rng.normal(0, spread, size))
    vector = np.clip(vector, -3e38, 3e38).astype(np.float32)
    vector[rng.random(size) < 0.2] = vector[0]
    pieces = [torch.from_numpy(part.copy()) for part in np.array_split(vector, 3)]
    got = rules.magnitude_threshold(lambda: pieces, density)
    assert got == np.sort(np.abs(vector))[::-1][max(1, math.floor(size * density)) - 1]


def test_the_threshold_of_nothing_is_nothing():
    assert rules.magnitude_threshold(list, 0.5) == 0.0
