"""`--dry-run`: what a command would do, found out without loading weights, and printed instead of being done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import SAMPLING_HELP
from .output import Table, collected_notices, pairs, show, size, write_json, write_json_line
from .rank_plan import plan_tables
from .settings import sources

if TYPE_CHECKING:
    from bestiary.api.sampling import SamplingParams
    from bestiary.engine.arguments import EngineArgs

Command = TypeVar("Command", bound=Callable[..., Any])

_LIMITS = ("max_queue", "enable_chunked_prefill", "enable_prefix_caching", "stall_timeout")


def dry_run_option(command: Command) -> Command:
    """Add --dry-run (parameter `dry_run`); a command that is given it calls `show_plan` and does nothing else."""
    words = "Print the plan: model, memory, limits, settings; load nothing."
    return click.option("--dry-run", is_flag=True, help=words)(command)


def show_plan(
    args: EngineArgs,
    sampling: SamplingParams | None = None,
    *,
    as_json: bool = False,
    on_one_line: bool = False,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Print the plan of the running command, and return its exit code: 1 where the engine would not start.

    Args:
        sampling: of the requests, where the command has them.
        as_json: one document, `on_one_line` or indented, instead of tables.
        more: further sections, title → names and values, such as where a server would listen.

    Raises:
        ModelError, PluginError, UsageError: the same as when the model is loaded.
    """
    document = plan_of(args, sampling) | {"more": {title: dict(facts) for title, facts in (more or {}).items()}}
    if as_json:
        (write_json_line if on_one_line else write_json)(document)
    else:
        show(_tables(document))
    return 1 if document["problems"] else 0


def plan_of(args: EngineArgs, sampling: SamplingParams | None = None) -> dict[str, Any]:
    """The plan as data: `inspect`'s facts, and the limits, sampling parameters and settings of the running command.

    `problems` would stop the engine from starting, `notices` would not.
    """
    from .examine import examine

    with collected_notices() as notices:
        found = examine(args)
    context = click.get_current_context(silent=True)
    problems = found.pop("notices")
    sequences, tokens = args.step_limits(found["runs_on"]["device"])
    return found | {
        "limits": {
            "max_model_len": found["config"]["max_model_len"],
            "max_num_seqs": sequences,
            "max_num_batched_tokens": tokens,
            **{name: getattr(args, name) for name in _LIMITS},
        },
        "sampling": None if sampling is None else {name: getattr(sampling, name) for name in (*SAMPLING_HELP, "seed")},
        "settings": [] if context is None else list(sources(context)),
        "problems": problems,
        "notices": [text for text in notices if text not in problems],
    }


def _tables(found: Mapping[str, Any]) -> list[Table]:
    source, plugin, runs = (found[name] for name in ("source", "plugin", "runs_on"))
    package = f"{plugin['package'] or 'registered by hand'} {plugin['version'] or ''}".strip()
    settings = [(each["option"], _plain(each["value"]), each["from"]) for each in found["settings"]]
    return [
        pairs("model", [("model", found["model"]), ("kind", source["kind"]), ("path", source["path"]),
                        ("architecture", plugin["architecture"]), ("plugin", package)]),
        Table("files", ("file", "size"), [(name, size(count)) for name, count in source["bytes"].items()]),
        pairs("runs on", [(name.replace("_", " "), value) for name, value in runs.items() if name != "ops"]),
        pairs("ops", _by_implementation(runs["ops"])),
        pairs("KV cache", [("memory", _cache(found["kv_cache"]))]),
        *plan_tables(found["plan"]),
        pairs("limits", [(name, _plain(value)) for name, value in found["limits"].items()]),
        pairs("sampling", [(name, _plain(value)) for name, value in (found["sampling"] or {}).items()]),
        *(pairs(title, [(name, _plain(value)) for name, value in facts.items()])
          for title, facts in found["more"].items()),
        Table("settings", ("option", "value", "from"), settings),
        Table("notices", ("notice",), [(text,) for text in found["notices"]]),
        Table("problems", ("problem",), [(text,) for text in found["problems"]]),
    ]  # fmt: skip


def _by_implementation(ops: Mapping[str, str]) -> list[tuple[str, object]]:
    return [(name, ", ".join(op for op, each in ops.items() if each == name)) for name in dict.fromkeys(ops.values())]


def _cache(cache: Mapping[str, Any]) -> str | None:
    if cache["bytes"] is None:
        return None
    blocks = f"{size(cache['bytes'])}: {cache['blocks']} blocks, {cache['tokens']} tokens, {cache['dtype']}"
    if "state_rows" not in cache:
        return blocks
    return f"{blocks}; {size(cache['state_bytes'])}: {cache['state_rows']} rows of layers' states"


def _plain(value: Any) -> str:
    return "none" if value in (None, (), [], {}) else str(value)
