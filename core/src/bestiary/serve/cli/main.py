"""`bestiary`: the commands, and how every failure of any of them is shown.

`EPILOG` lists the exit codes. Neither torch, rich nor any plugin is imported here.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import click

from bestiary import __version__

from .configured import config_option, note_file
from .failures import INTERRUPTED, report
from .groups import LazyGroup
from .streams import open_streams

COMMANDS = {
    "generate": ("bestiary.serve.cli.generate:generate", "Complete a prompt, streaming the text."),
    "chat": ("bestiary.serve.cli.chat.command:chat", "Talk with a model, turn by turn."),
    "embed": ("bestiary.serve.cli.embed:embed", "Make a vector of each text."),
    "serve": ("bestiary.serve.cli.serve:serve", "Serve a model over HTTP, with a page to chat."),
    "ray": ("bestiary.serve.cli.ray:ray", "Serve a model over HTTP: replicas and their ranks placed by Ray."),
    "models": ("bestiary.serve.cli.models:models", "List architectures, short names, and what can be installed."),
    "inspect": ("bestiary.serve.cli.inspect:inspect", "Say what a model is and needs, before loading it."),
    "doctor": ("bestiary.serve.cli.doctor:doctor", "Check this installation and this machine."),
    "explain": ("bestiary.serve.cli.explain:explain", "Say what an error code means, and what to do."),
    "config": ("bestiary.serve.cli.config:config", "Show every option's value, and where it comes from."),
    "new": ("bestiary.serve.cli.new:new", "Start a plugin project that passes its own contract."),
    "certify": ("bestiary.serve.cli.certify:certify", "Check that a plugin does what its contract says."),
    "bench": ("bestiary.bench.cli:bench", "Measure latency, throughput and perplexity."),
    "completion": ("bestiary.serve.cli.completion:completion", "Print the completion script of a shell."),
}
"""Name → where it is, and its line in `bestiary --help`."""

JSON_LINES_COMMANDS = frozenset({"chat", "embed"})
"""Those whose --json is one object a line."""

EPILOG = """\
MODEL is a directory, a .gguf file, a hub id (owner/name, owner/name:file.gguf) or a short name.

\b
Exit codes:
  0    done
  1    a wrong option, a refused request, or a failure at run time; certify: a check failed
  2    the model is bad; certify: TARGET is no plugin
  3    a plugin is bad; doctor --strict found something
  4    certify: an architecture has no contract
  70   a defect of bestiary's own
  130  Ctrl-C
  141  the reader of standard output left, as `head -1` does"""


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    foreign=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    params=[config_option(note_file)],
)
@click.version_option(__version__, prog_name="bestiary")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Inference for large language models in which every architecture is a pip package."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; only a completion's `SystemExit` leaves it."""
    options = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
    command = next((each for each in options if not each.startswith("-")), "")
    fail = partial(
        report, debug="--debug" in options, as_json="--json" in options, on_one_line=command in JSON_LINES_COMMANDS
    )
    try:
        open_streams()
        streams = sys.stdout, sys.stderr
        code = cli.main(args=list(arguments), prog_name="bestiary", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        return fail(error)
    except KeyboardInterrupt:  # pressed again while the first was dealt with
        return INTERRUPTED
    except SystemExit:
        if sys.stdout is streams[0]:
            raise
        sys.stdout, sys.stderr = streams  # click answers a closed pipe by leaving, behind streams that hide it
        return fail(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        return fail(RuntimeError(f"a native library gave up: {error}"))  # a Rust panic is no Exception
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """The console script.

    A crash in native code names the Python files it came from, and torch does not import entry points of its own that
    packages nobody asked for may bring.
    """
    if sys.stderr is not None:
        faulthandler.enable()
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
