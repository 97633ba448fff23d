"""Tiny installed distributions for tests: a module and a dist-info folder, in a folder to be put on `sys.path`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

GOOD = """\
class {name}:
    def __init__(self, vllm_config, prefix=""):
        pass

    def embed_input_ids(self, input_ids):
        return input_ids

    def forward(self, input_ids, positions):
        return input_ids

    def compute_logits(self, hidden_states):
        return hidden_states
"""
"""A model class without torch that fulfils the protocols; `{name}` is to be filled in."""


class Site:
    """A folder on `sys.path` that distributions are put into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        models: Mapping[str, str] | None = None,
        hooks: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        gguf: Mapping[str, str] | None = None,
        api: str | None = "1.0",
        source: str = "",
        module: str | None = None,
        metadata: str | None = None,
        entry_points: str | bytes | None = None,
        groups: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Path:
        """A distribution whose one module is `module` (default: the name with underscores); returns its dist-info.
        `groups` are further groups of entry points."""
        module = module or name.replace("-", "_")
        (self.root / f"{module}.py").write_text(source)
        info = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if metadata is None else metadata
        )
        if entry_points is None:
            all_groups = {
                "vllm_models": models,
                "bestiary_aliases": aliases,
                "bestiary_gguf": gguf,
                "bestiary_hooks": hooks,
                "bestiary_api": {api: module} if api else None,
                **(groups or {}),
            }
            entry_points = "\n".join(
                f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items())
                for group, entries in all_groups.items()
                if entries
            )
        data = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
        info.joinpath("entry_points.txt").write_bytes(data)
        hashed = base64.urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).rstrip(b"=").decode()
        info.joinpath("RECORD").write_text(f"{module}.py,sha256={hashed},{len(source)}\n{info.name}/RECORD,,\n")
        return info

    def model(
        self,
        name: str,
        architecture: str,
        version: str = "1.0",
        *,
        module: str | None = None,
        api: str | None = "1.0",
        metadata: str | None = None,
    ) -> Path:
        """A good plugin with one architecture."""
        module = module or name.replace("-", "_")
        return self.add(
            name,
            version,
            models={architecture: f"{module}:{architecture}"},
            source=GOOD.format(name=architecture),
            module=module,
            api=api,
            metadata=metadata,
        )
