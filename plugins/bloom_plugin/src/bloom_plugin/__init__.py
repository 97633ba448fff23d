"""BLOOM and BLOOMZ for Bestiary."""
