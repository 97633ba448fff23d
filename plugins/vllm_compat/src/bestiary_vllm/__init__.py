"""Model files written for vLLM run on Bestiary's layers, where real vLLM is not installed.

`serving()` lets code that is imported inside it find the module paths ``vllm.…``; `install()` lets the whole process.
"""

from .finder import install, serving, uninstall

__all__ = ["install", "serving", "uninstall"]
