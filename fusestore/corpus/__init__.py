"""Text in, documents out: ingest, segment, tokenize."""
