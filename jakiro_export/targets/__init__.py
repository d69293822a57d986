"""Targets: transformers' models under the graph contract."""
