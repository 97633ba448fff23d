"""Mixtral, by its contract."""

from mixtral_plugin.contract import TestMixtral

__all__ = ["TestMixtral"]
