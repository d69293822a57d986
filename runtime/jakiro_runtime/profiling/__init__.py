"""Costs of graph calls and a description of the machine."""
