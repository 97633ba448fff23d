"""`bestiary completion SHELL`."""

from __future__ import annotations

import click

from .options import debug_option


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
def completion(shell: str) -> None:
    """Print the script that teaches SHELL to complete bestiary's commands, options and models.

    \b
    bash: eval "$(bestiary completion bash)"      in ~/.bashrc
    zsh:  eval "$(bestiary completion zsh)"       in ~/.zshrc
    fish: bestiary completion fish | source       in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from .main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no shell {shell}")
    click.echo(kind(cli, {}, "bestiary", "_BESTIARY_COMPLETE").source())
