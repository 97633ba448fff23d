"""Quantization: the interface every method implements."""

from .base import QuantizationConfig, QuantizeMethodBase, UnquantizedLinearMethod, method_for

__all__ = ["QuantizationConfig", "QuantizeMethodBase", "UnquantizedLinearMethod", "method_for"]
