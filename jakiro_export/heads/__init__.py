"""Draft heads, one module a family."""
