"""The load client of the xDS benchmarks (C), and the server process that it loads."""
