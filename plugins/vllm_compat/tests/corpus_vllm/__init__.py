"""Model files in the style of those written for vLLM, of several ages: ours, and nobody else's code."""
