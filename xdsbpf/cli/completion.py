"""`xdsbpf completion`: the script that teaches a shell to complete commands and options."""

from __future__ import annotations

import enum
import sys

import typer


class Shell(enum.StrEnum):
    """Shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Shell = typer.Argument(help="bash, zsh or fish")) -> None:
    """Print the completion script of a shell.

    For bash and zsh: source <(xdsbpf completion bash); for fish: xdsbpf completion fish | source
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # used there, defined beside it

    script = get_completion_script(prog_name="xdsbpf", complete_var="_XDSBPF_COMPLETE", shell=shell.value)
    sys.stdout.write(script.strip() + "\n")


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(completion)
