"""Ring 0: the contracts. Imports neither torch nor any plugin."""
