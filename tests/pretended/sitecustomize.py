"""Processes that a pretended one starts have GPUs as well."""

import os

if os.environ.get("BESTIARY_PRETENDED"):
    import pretended  # noqa: F401
