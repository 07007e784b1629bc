"""Which source token means which target token, and which source row may supervise which position."""
