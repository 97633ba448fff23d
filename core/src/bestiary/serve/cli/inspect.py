"""`bestiary inspect MODEL`: what a model is, what it needs and what would run it. No weight data is read."""

from __future__ import annotations

from typing import Any

import click

from .examine import examine
from .kinds import MEMORY
from .options import SectionedCommand, debug_option, engine_args, engine_options, json_option, model_argument
from .output import Table, collected_notices, pairs, show, size, write_json
from .rank_plan import plan_tables


@click.command(cls=SectionedCommand)
@model_argument
@json_option
@debug_option
@click.option(
    "--memory-per-rank",
    type=MEMORY,
    help="Plan for ranks that may take as much: bytes, or 24G.  [default: what is free]",
)
@engine_options
def inspect(model: str, as_json: bool, memory_per_rank: int | None, **options: Any) -> None:
    """Say what MODEL is and needs, before loading it.

    The plugin is imported and the model built without memory; headers of weight files are read, their data is not.
    Weights that are still on the hub stay there. With --tp, --pp, --dp or --ep, what every rank would hold is told, and
    no rank is started.
    """
    with collected_notices() as notices:
        document = examine(engine_args(model, options), memory_per_rank)
    document["notices"] += [text for text in notices if text not in document["notices"]]
    if as_json:
        write_json(document)
    else:
        show(_tables(document))


def _shown(key: str, value: Any) -> str:
    if not isinstance(value, int):
        return str(value)
    return size(value) if "bytes" in key or "memory" in key else f"{value:,}"


def _tables(found: dict[str, Any]) -> list[Table]:
    source, plugin, config, weights = found["source"], found["plugin"], found["config"], found["weights"]
    adapters = found["adapters"]
    cache, runs, tokenizer = found["kv_cache"], found["runs_on"], found["tokenizer"]
    package = f"{plugin['package'] or 'registered by hand'} {plugin['version'] or ''}"
    alias = plugin["alias_of"] and f"{plugin['alias_of']}, {plugin['class_package'] or 'registered by hand'}"
    rope = config["rope"] and ", ".join(f"{key}={value}" for key, value in sorted(config["rope"].items()))
    by_dtype = ", ".join(f"{size(count)} {dtype}" for dtype, count in weights["bytes_by_dtype"].items())
    shared = f" ({weights['shared_tensors']} shared)" if weights["shared_tensors"] else ""
    return [
        pairs("model", [("model", found["model"]), ("kind", source["kind"]), ("path", source["path"]),
                        ("architecture", plugin["architecture"]), ("alias of", alias),
                        ("plugin", package), ("class", plugin["class"])]),
        pairs("configuration", [(key.replace("_", " "), value) for key, value in config.items() if key != "rope"]
              + [("rope", rope)]),
        pairs("weights in memory", [("parameters", f"{weights['parameters']:,}{shared}"),
                                    ("memory", f"{size(weights['bytes'])} ({by_dtype})")]),
        Table("weights on disk", ("type", "tensors", "size", "format"),
              [(each["type"], str(each["tensors"]), size(each["bytes"]), each["format"])
               for each in weights["stored"]]),
        pairs("adapters", [] if adapters is None else [
            ("slots", f"{adapters['max_loras']} of rank {adapters['max_lora_rank']}"
                      + ("" if adapters["enabled"] else " (without --lora: none)")),
            ("memory", size(adapters["bytes"])), ("targets", ", ".join(adapters["targets"])),
            *((each["name"], f"{each['path']} (rank {each['rank']})") for each in adapters["given"])]),
        pairs("KV cache", [(key.replace("_", " "), _shown(key, value))
                           for key, value in cache.items() if value is not None]),
        *plan_tables(found["plan"]),
        pairs("runs on", [(key.replace("_", " "), value) for key, value in runs.items() if key != "ops"]),
        Table("ops", ("op", "implementation"), list(runs["ops"].items())),
        pairs("tokenizer", [("tokens", tokenizer["tokens"]), ("problem", tokenizer["problem"]),
                            ("chat template", "yes" if tokenizer["chat_template"] else "no")]),
        Table("notices", ("notice",), [(text,) for text in found["notices"]]),
    ]  # fmt: skip
