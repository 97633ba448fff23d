"""The corpus of model files is importable; what was said once may be said again in each test."""

import sys
from pathlib import Path

import pytest

from bestiary_vllm import said

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fresh_lines():
    said.forget()
    yield
    said.forget()
