"""What people look at when a run ends."""
