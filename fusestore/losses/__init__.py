"""Losses of sparse fused distributions; pure functions of tensors."""
