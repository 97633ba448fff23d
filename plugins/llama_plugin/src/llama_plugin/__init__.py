"""Llama, Mistral and their like for Bestiary."""
