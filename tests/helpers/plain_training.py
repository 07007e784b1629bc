"""Training by the plainest loop: what other people's trainers must do too."""

import torch
from transformers import AutoModelForCausalLM

from fusestore.data import BatchOrder, collate
from fusestore.losses import fusion_terms


def load(model_path):
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def step_windows(dataset, windows_per_step, steps, seed=0):
    """The windows of each optimizer step in the order of `fusestore train`."""
    found = []
    epoch = 0
    while len(found) < steps:
        found += list(BatchOrder(dataset, windows_per_step, seed=seed, epoch=epoch))
        epoch += 1
    return found[:steps]


def train_plainly(model_path, batches, objective=None, learning_rate=0.1):
    """Losses of SGD steps, one whole batch each, and the weights after the last step."""
    model = load(model_path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    losses = []
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = fusion_terms(logits, batch, objective).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def batches_of(dataset, groups):
    """One collated batch of each group of windows."""
    return [collate([dataset[window] for window in group]) for group in groups]


def mean_loss(model, dataset, objective=None):
    """The loss of all windows as one batch, and its two terms."""
    batch = collate([dataset[window] for window in range(len(dataset))])
    with torch.no_grad():
        logits = model.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    return [float(value) for value in fusion_terms(logits, batch, objective)]


def check_same_weights(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=tolerance), name
