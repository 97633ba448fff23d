"""`bestiary bench gpu`: one command, no model files, every figure beside its own limit."""
