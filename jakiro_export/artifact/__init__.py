"""The engine directory as it is written: lazy weights, streamed to disk."""
