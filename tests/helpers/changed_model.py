"""A model whose inputs or logits a test changes."""

import torch


class Changed(torch.nn.Module):
    """A model with a function in front of it or behind it."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.config = model.config

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        inputs = {"attention_mask": attention_mask, "use_cache": use_cache}
        if self.before is not None:
            inputs |= self.before(input_ids, attention_mask)
        output = self.model(input_ids=input_ids, **inputs)
        if self.after is not None:
            output.logits = self.after(output.logits)
        return output


def positions_after_padding(input_ids, _mask):
    """As if padding, which has the id 0, were on the left."""
    padding = (input_ids == 0).sum(1)
    return {"position_ids": torch.arange(input_ids.shape[1]) + padding[:, None]}
