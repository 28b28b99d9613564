"""The only package that knows bpf(2): kernel ABI, loader, maps, links, feature probes.

The agent hands it values of `abi` through `tables` and asks `attach` for hooks; the programs
themselves are C, in bpf/. Nothing here decides what a map should hold.
"""
