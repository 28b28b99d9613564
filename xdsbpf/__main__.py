"""`python -m xdsbpf`."""

from xdsbpf.cli.main import main

main()
