"""What differs between vLLM's spellings and core's, and what core has no need of: one module a theme."""
