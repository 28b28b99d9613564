"""Black-box conformance of an xDS server, rule by rule; README.md tells how to run it against another server."""
