"""Mixtures of experts as vLLM's model files build them, in every version's spelling, upon core's `FusedMoE`."""
