"""Mixtral for Bestiary."""
