"""What spans several stages: pipeline, comparison, verification, repair, sharing."""
