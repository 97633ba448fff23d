"""Hostile inputs to a running server: tables of them, one oracle, and canaries that must not notice."""
