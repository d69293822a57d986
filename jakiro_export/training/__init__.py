"""Training of draft heads on a target's own text."""
