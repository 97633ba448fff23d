"""Bestiary: a model zoo for LLM inference in which every architecture is a pip package."""

__version__ = "0.1.0"
