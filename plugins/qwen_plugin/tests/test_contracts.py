"""Qwen2, Qwen3 and their mixtures of experts, by their contracts."""

from qwen_plugin.contract import TestQwen2, TestQwen2Moe, TestQwen3, TestQwen3Moe

__all__ = ["TestQwen2", "TestQwen2Moe", "TestQwen3", "TestQwen3Moe"]
