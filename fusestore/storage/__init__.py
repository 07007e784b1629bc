"""The ground floor: where bytes live and how they are published, whatever the stage."""
