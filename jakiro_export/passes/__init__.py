"""Graph passes, one idea a file; `pipeline` says their order. No pass reads a weight: they stay recipes until written."""
