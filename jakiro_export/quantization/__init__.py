"""Number formats of weights: recipe (which tensor gets which scheme), schemes (the numbers), layouts (the bytes)."""
