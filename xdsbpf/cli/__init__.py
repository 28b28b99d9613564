"""The command line: thin shells. Results go to standard output, everything else to standard error."""
