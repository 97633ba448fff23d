"""Ops: typed functions with a torch reference and a registration point for faster versions."""
