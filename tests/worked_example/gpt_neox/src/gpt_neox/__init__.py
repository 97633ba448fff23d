"""GPT-NeoX and Pythia for Bestiary."""
