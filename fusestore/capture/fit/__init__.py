"""What of a model fits where, before it is downloaded."""
