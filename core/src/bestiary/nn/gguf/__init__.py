"""GGUF's tensor types and the decoders of their blocks."""
