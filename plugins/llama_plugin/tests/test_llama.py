"""Llama and its like, by their contracts."""

from llama_plugin.contract import TestFirstSpelling, TestLlama, TestMistral, TestPhi3

__all__ = ["TestFirstSpelling", "TestLlama", "TestMistral", "TestPhi3"]
