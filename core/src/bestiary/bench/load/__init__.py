"""A load generator for OpenAI-compatible servers: `bestiary bench serve`. It imports no torch."""
