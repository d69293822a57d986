"""OpenAI-compatible server over one engine: requests over HTTP, decoded in one continuous batch."""
