"""transformers without its `__init__`: what other threads, and those who keep the package, find in it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from bestiary.engine.loader.bare_packages import bare_packages

found = []
with bare_packages():
    import transformers
    import transformers.models.llama.configuration_llama as configuration
    try:
        transformers.TokenizersBackend
    except AttributeError as error:
        found.append(str(error))

    def elsewhere():
        import transformers
        began.set()
        found.append(transformers.TokenizersBackend.__name__)

    began = threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    began.wait(10)
    thread.join(0.2)
    found.append(thread.is_alive())
thread.join(50)
found.append(transformers.LlamaConfig is configuration.LlamaConfig)
import transformers as real
found.append(real is not transformers and real.LlamaConfig is transformers.LlamaConfig)
print(found)
"""


def test_the_real_package_is_found_in_the_bare_one_afterwards() -> None:
    """Another thread that imports it meanwhile waits until it can have what it asks for."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "[\"module 'transformers' has no attribute 'TokenizersBackend'\", True, 'TokenizersBackend', True, True]"
    )


def test_where_it_is_imported_already_nothing_happens() -> None:
    import transformers

    from bestiary.engine.loader.bare_packages import bare_packages

    with bare_packages():
        assert sys.modules["transformers"] is transformers
