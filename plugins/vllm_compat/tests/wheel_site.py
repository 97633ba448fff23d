"""The wheel as it is installed: its metadata, made from `pyproject.toml`, in a site of the tests' own."""

import tomllib
from pathlib import Path

from bestiary.testing.fake_site import Site

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def add_wheel(site: Site) -> None:
    """Put the wheel's metadata on the site; its code is where it is."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    metadata = f"Metadata-Version: 2.1\nName: bestiary-vllm\nVersion: 0.1.0\nSummary: {project['description']}\n"
    groups = project["entry-points"]
    module = "bestiary_vllm_is_elsewhere"
    site.add("bestiary-vllm", "0.1.0", api=None, module=module, metadata=metadata, groups=groups)
