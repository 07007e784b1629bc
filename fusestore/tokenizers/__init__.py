"""Tokenizers as bytes: tokens, end offsets, conversions, vocabularies."""
