"""Layouts: how a scheme's numbers lie in memory, for whoever multiplies with them."""
