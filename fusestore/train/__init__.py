"""Losses, the trainer and the evaluation."""
