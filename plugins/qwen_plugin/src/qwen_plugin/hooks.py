"""What the first Qwen needs beside its model class."""

from bestiary.api.hooks import Offers, hookimpl


@hookimpl
def config_parsers() -> Offers:
    return {"qwen": "qwen_plugin.config:qwen_config"}


@hookimpl
def tokenizers() -> Offers:
    return {"QWenTokenizer": "qwen_plugin.tokenizer:QWEN"}
