"""What people look at in an alignment."""
