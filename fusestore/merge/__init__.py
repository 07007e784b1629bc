"""Merging the weights of models of one architecture: the baseline that needs no data."""
