"""The Qwen family in GGUF files, as data; the standard names and fields are core's."""

from bestiary.api.gguf import GgufArchitecture

QWEN2 = GgufArchitecture(architecture="Qwen2ForCausalLM", model_type="qwen2")
QWEN3 = GgufArchitecture(architecture="Qwen3ForCausalLM", model_type="qwen3")
