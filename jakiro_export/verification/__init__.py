"""Checks of exported graphs against torch."""
