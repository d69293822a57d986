"""The engine directory's format on disk."""
