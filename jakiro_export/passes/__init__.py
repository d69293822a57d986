"""Graph passes, from a traced graph to the one that is written."""
