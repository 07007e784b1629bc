"""The losses by their definition, position by position in float64, and batches to try them on."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from fusestore.losses.objective import FusionObjective, TailMode

DIVERGENCES = ("cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon")
TAILS: tuple[TailMode, ...] = ("renormalize", "ghost")

objectives = st.builds(
    FusionObjective,
    lm_weight=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.sampled_from([1.0, 0.5, 2.0, 3.7]),
    tail=st.sampled_from(TAILS),
    temperature_squared=st.booleans(),
)


def dense_loss(logits, batch, objective):
    """The definition of docs/losses.md over dense distributions; differentiable."""
    lm, fused = [], []
    for b in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            label = int(batch["next_ids"][b, i])
            if label == -100:
                continue
            lm.append(-torch.log_softmax(logits[b, i], -1)[label])
            if batch["fused_mask"][b, i]:
                row = {name: batch[f"fused_{name}"][b, i] for name in ("ids", "logprobs", "tail")}
                distance = dense_divergence(logits[b, i], row, objective)
                if distance is not None:
                    fused.append(distance)
    zero = logits.sum() * 0.0
    lm_mean = torch.stack(lm).mean() if lm else zero
    fused_mean = torch.stack(fused).mean() if fused else zero
    factor = objective.temperature**2 if objective.temperature_squared else 1.0
    return objective.lm_weight * lm_mean + (1 - objective.lm_weight) * factor * fused_mean


def dense_divergence(row, target, objective):
    temperature, vocab_size = objective.temperature, len(row)
    kept = [
        (int(token), math.exp(float(logprob)))
        for token, logprob in zip(target["ids"], target["logprobs"], strict=True)
        if logprob > -math.inf
    ]
    if not kept:
        return None
    if objective.tail == "ghost" and len(kept) < vocab_size:
        # k + 1 outcomes, tempered as such.
        ids = [token for token, _ in kept]
        others = torch.ones(vocab_size, dtype=torch.bool)
        others[ids] = False
        whole = torch.softmax(row, -1)
        q = torch.cat([whole[ids], whole[others].sum()[None]]) ** (1 / temperature)
        masses = [mass for _, mass in kept] + [math.exp(float(target["tail"]))]
        p = torch.tensor(masses, dtype=torch.float64) ** (1 / temperature)
    else:
        q = torch.softmax(row / temperature, -1)
        p = torch.zeros(vocab_size, dtype=torch.float64)
        for token, mass in kept:
            p[token] = mass ** (1 / temperature)
    p, q = p / p.sum(), q / q.sum()
    if objective.divergence == "cross_entropy":
        return kl(p, q) - kl(p, torch.ones_like(p))
    if objective.divergence == "forward_kl":
        return kl(p, q)
    if objective.divergence == "reverse_kl":
        supported = p > 0
        return kl(q[supported] / q[supported].sum(), p[supported])
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def kl(p, q):
    """Σ p ln(p / q) over the outcomes that p has."""
    has = p.detach() > 0
    return (p[has] * (torch.log(p[has]) - torch.log(q[has]))).sum()


def random_batch(seed, batch_size, length, vocab_size, k):
    """Logits float64 [B, L, V] and a batch with unused entries, missing tails, labels and rows."""
    rng = np.random.default_rng(seed)
    shape = (batch_size, length)
    probs = rng.dirichlet(np.full(k + 1, 0.5), shape).clip(1e-30)
    logprobs = np.log(probs).astype(np.float32)
    unused = rng.random((*shape, k)) < rng.choice([0.0, 0.3])
    ids = np.stack([rng.permutation(vocab_size)[:k] for _ in range(batch_size * length)])
    ids = ids.reshape(*shape, k)
    ids[unused] = 0
    kept = np.where(unused, -np.inf, logprobs[..., :k])
    tail = logprobs[..., k].copy()
    tail[rng.random(shape) < 0.1] = -np.inf
    next_ids = rng.integers(0, vocab_size, shape)
    next_ids[rng.random(shape) < rng.choice([0.0, 0.3, 1.0])] = -100
    batch = {
        "next_ids": torch.from_numpy(next_ids),
        "fused_ids": torch.from_numpy(ids).long(),
        "fused_logprobs": torch.from_numpy(kept.astype(np.float32)),
        "fused_tail": torch.from_numpy(tail),
        "fused_mask": torch.from_numpy(rng.random(shape) < rng.choice([0.0, 0.6, 1.0])),
    }
    logits = torch.from_numpy(rng.normal(0, 2, (*shape, vocab_size)))
    return logits, batch


def full_batch(seed, batch_size, length, vocab_size, k):
    """As `random_batch`, every position with a label and a fused distribution."""
    logits, batch = random_batch(seed, batch_size, length, vocab_size, k)
    rng = np.random.default_rng(seed)
    batch["next_ids"] = torch.from_numpy(rng.integers(0, vocab_size, (batch_size, length)))
    batch["fused_mask"] = torch.ones(batch_size, length, dtype=torch.bool)
    return logits, batch
