"""Training on several processes: launch, engines, sharded weights."""
