"""Read what users bring: targets, heads, tokenizers. Files are data; nothing in them is executed."""
