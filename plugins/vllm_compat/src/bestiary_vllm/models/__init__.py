"""Model files that others are built upon, in vLLM's form: class names, constructors and attributes are those that files
which import them from ``vllm.model_executor.models`` expect.
"""
