"""HTTP faces of the control plane: thin shells over `xdsbpf.report`."""
