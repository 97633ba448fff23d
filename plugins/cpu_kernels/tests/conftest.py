"""Without a compiler this package is not built (scripts/lib.sh says so), and there is nothing to test."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # kernel_cases.py
collect_ignore_glob = [] if find_spec("bestiary_cpu") else ["test_*.py"]
