"""The wheel as it is installed: its metadata, made from `pyproject.toml`, in a site of the tests' own."""

import tomllib
from pathlib import Path

from bestiary.testing.fake_site import Site

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def add_wheel(site: Site) -> None:
    """Put the wheel's metadata on the site; its code is where it is."""
    groups = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]
    site.add("bestiary-vllm", "0.1.0", api=None, module="bestiary_vllm_is_elsewhere", groups=groups)
