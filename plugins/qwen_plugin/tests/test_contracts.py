"""The five architectures, by their contracts."""

from qwen_plugin.contract import TestQWen, TestQwen2, TestQwen2Moe, TestQwen3, TestQwen3Moe

__all__ = ["TestQWen", "TestQwen2", "TestQwen2Moe", "TestQwen3", "TestQwen3Moe"]
