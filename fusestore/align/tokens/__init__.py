"""Token alignment: which source row may supervise which target position."""
