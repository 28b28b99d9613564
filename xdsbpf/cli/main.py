"""Entry point: the command tree, and what becomes of an error.

Commands import what they need when they run, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from xdsbpf.cli.exits import CommandError, Exit, report_error
from xdsbpf.cli.tables import Format, write_document
from xdsbpf.errors import ConfigError, XdsbpfError

app = typer.Typer(
    name="xdsbpf",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from xdsbpf import __version__

        sys.stdout.write(f"xdsbpf {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="print the version", callback=_print_version, is_eager=True),
) -> None:
    """Control plane for a hybrid service mesh: Istio manifests to Envoy xDS and eBPF map entries.

    Exit codes: 0 done, 1 failed or not so, 64 wrong usage, 65 bad input, 69 nobody answers, 77 not permitted,
    79 findings.
    """


def version(output: Format = typer.Option(Format.TABLE, "--output", "-o", help="table, json or yaml")) -> None:
    """Print the version."""
    from xdsbpf import __version__

    if not write_document(output, "Version", {"version": __version__}):
        sys.stdout.write(f"xdsbpf {__version__}\n")


def _add_commands() -> None:
    from xdsbpf.cli import (
        bootstrap,
        bpf,
        check,
        completion,
        diff,
        lab,
        manifests,
        plugins,
        processes,
        proxy_config,
        status,
        wait,
    )

    for module in (processes, status, wait, diff, manifests):
        module.register(app)
    app.add_typer(proxy_config.app, name="pc")
    app.add_typer(proxy_config.app, name="proxy-config", hidden=True)
    app.add_typer(bpf.app, name="bpf")
    app.add_typer(lab.app, name="lab")
    for module in (check, bootstrap, plugins, completion):
        module.register(app)
    app.command()(version)


def main() -> NoReturn:
    """Run the command line and exit with the code of the table in `exits.Exit`."""
    _add_commands()
    try:
        app(prog_name="xdsbpf")  # also as `python -m xdsbpf`: completion goes by it
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # `… | head`: typer makes it a failure
            sys.exit(Exit.OK)
        # Typer ends with 2 on wrong usage; sysexits.h and istioctl say 64.
        sys.exit(Exit.USAGE if stop.code == 2 else stop.code)
    except CommandError as error:
        report_error(error)
        sys.exit(error.code)
    except ConfigError as error:
        report_error(error)
        sys.exit(Exit.USAGE)
    except XdsbpfError as error:
        report_error(error)
        sys.exit(Exit.FAILURE)
    except BrokenPipeError:
        sys.exit(Exit.OK)
    sys.exit(Exit.OK)
