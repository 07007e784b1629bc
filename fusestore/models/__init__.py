"""Models: found, converted, loaded, and their logits."""
