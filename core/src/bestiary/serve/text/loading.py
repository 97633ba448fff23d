"""The tokenizer that a model's arguments lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.api.errors import UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.loader.description import ModelDescription, describe

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


def read_tokenizer(args: EngineArgs) -> Tokenizer | None:
    """Of a model that is loaded in another process. Imports no torch. Raises as `tokenizer_of` and `describe`."""
    if args.skip_tokenizer_init:
        return None
    from bestiary.api.registry import ModelRegistry

    hooks = HookManager(ModelRegistry.installation, args.plugin).load()
    return tokenizer_of(args, describe(args, hooks), hooks)


def tokenizer_of(args: EngineArgs, description: ModelDescription, hooks: HookManager) -> Tokenizer | None:
    """The model's own, or the one in the directory `args.tokenizer`; None under `skip_tokenizer_init`."""
    if args.skip_tokenizer_init:
        return None
    from .tokenizer import load_tokenizer

    if args.tokenizer is None:
        return load_tokenizer(description.source.root, metadata=description.metadata, hooks=hooks)
    path = Path(args.tokenizer).expanduser()
    if not path.exists():
        raise UsageError(
            "there is no such tokenizer directory", field="tokenizer", value=args.tokenizer,
            limit="a directory with tokenizer.json",
        )  # fmt: skip
    return load_tokenizer(path, hooks=hooks)
