"""Entry point: the command tree, and what becomes of an error.

Commands import what they need when they run, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from xdsbpf.cli.exits import CommandError, Exit, report_error
from xdsbpf.errors import ConfigError, XdsbpfError

app = typer.Typer(
    name="xdsbpf",
    help="Control plane for a hybrid service mesh: Istio manifests to Envoy xDS and eBPF map entries.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def version(output: str = typer.Option("table", "--output", "-o", help="table or json")) -> None:
    """Print the version."""
    from xdsbpf import __version__
    from xdsbpf.cli.tables import write_json

    if output == "json":
        write_json("Version", {"version": __version__})
    else:
        sys.stdout.write(f"xdsbpf {__version__}\n")


def _add_commands() -> None:
    from xdsbpf.cli import bootstrap, bpf, check, lab, manifests, plugins, processes, status, wait

    for module in (processes, manifests, status, wait, check, bootstrap, plugins):
        module.register(app)
    app.add_typer(bpf.app, name="bpf")
    app.add_typer(lab.app, name="lab")


def main() -> NoReturn:
    """Run the command line and exit with the code of the table in `exits.Exit`."""
    _add_commands()
    try:
        app(prog_name="xdsbpf")  # also as `python -m xdsbpf`: completion goes by it
    except SystemExit as stop:
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
