"""Measurements: how fast a model runs here, beside what the machine could do at most and what another runtime does."""
