"""`bestiary`: the commands, and how every failure of any of them is shown.

Exit codes: 0 done; 1 a wrong option, request or runtime failure; 2 the model is bad; 3 a plugin is bad; 70 a defect
of ours; 130 Ctrl-C. Neither torch, rich nor any plugin is imported here.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

import click

from bestiary import __version__

from .failures import report
from .output import harden_streams

COMMANDS = {
    "generate": ("bestiary.serve.cli.generate:generate", "Complete a prompt, streaming the text."),
    "chat": ("bestiary.serve.cli.chat:chat", "Talk with a model, turn by turn."),
    "models": ("bestiary.serve.cli.models:models", "List architectures, short names, and what can be installed."),
    "inspect": ("bestiary.serve.cli.inspect:inspect", "Say what a model is and needs, before loading it."),
    "doctor": ("bestiary.serve.cli.doctor:doctor", "Check this installation and this machine."),
    "bench": ("bestiary.bench.cli:bench", "Measure latency and throughput."),
    "completion": ("bestiary.serve.cli.completion:completion", "Print the completion script of a shell."),
}
"""Name → where it is, and its line in `bestiary --help`."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def __init__(self, *args: object, lazy: Mapping[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, name = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.lazy, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(self.lazy)}"
            ctx.fail(f"No such command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.lazy.items()])


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="MODEL is a directory, a .gguf file, a hub id (owner/name, owner/name:file.gguf) or a short name.",
)
@click.version_option(__version__, prog_name="bestiary")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Inference for large language models in which every architecture is a pip package."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but `SystemExit` for a closed pipe leaves it."""
    options = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
    harden_streams()
    try:
        code = cli.main(args=list(arguments), prog_name="bestiary", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        return report(error, debug="--debug" in options, as_json="--json" in options)
    except KeyboardInterrupt:  # pressed again while the first was dealt with
        return 130
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
