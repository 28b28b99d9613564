"""`bootstrap`: what a stock Envoy or a gRPC client needs to start against this control plane."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from xdsbpf.cli.exits import Exit, fail
from xdsbpf.cli.tables import Format


def bootstrap(
    node_id: str = typer.Option(..., "--node-id", help="xDS node id: any text, or node~…, sidecar~…"),
    xds: str = typer.Option("127.0.0.1:15010", "--xds", help="control plane: host:port or unix:PATH"),
    cluster: str = typer.Option("xdsbpf", help="node.cluster, a name for the group of proxies"),
    admin: str = typer.Option("envoy-admin.sock", "--admin", help="unix socket of Envoy's admin interface"),
    delta: bool = typer.Option(True, "--delta/--sotw", help="incremental xDS, or state of the world"),
    grpc: bool = typer.Option(False, "--grpc", help="print the bootstrap of a gRPC client (GRPC_XDS_BOOTSTRAP)"),
    rest: bool = typer.Option(False, "--rest", help="poll `serve --rest-listen` instead of streams"),
    refresh: float = typer.Option(2.0, min=0.01, help="seconds between two polls"),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="client certificate chain (PEM)"),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="its private key (PEM)"),
    tls_ca: Path | None = typer.Option(None, "--tls-ca", help="CA of the control plane (PEM)"),
    tls_server_name: str = typer.Option(
        "", "--tls-server-name", help="DNS name, address or spiffe:// id in its certificate; default: the host"
    ),
    sds_dir: Path | None = typer.Option(
        None, "--sds-dir", help="write the secrets' files there, so that Envoy takes up replaced certificates"
    ),
    output: Format = typer.Option(Format.YAML, "--output", "-o", help="yaml or json"),
) -> None:
    """Print the bootstrap of an Envoy.

    A stock Envoy takes everything from the control plane with it; --grpc prints that of a proxyless gRPC client.
    """
    from xdsbpf.compile.raw.bootstrap import ClientBootstrap, envoy_bootstrap, grpc_bootstrap
    from xdsbpf.control_plane_cluster import ClientTls, secret_documents

    given = [path for path in (tls_cert, tls_key, tls_ca) if path is not None]
    tls = None
    if tls_cert is not None and tls_key is not None and tls_ca is not None:
        if sds_dir is not None:  # Envoy reads these wherever it is started
            tls_cert, tls_key, tls_ca, sds_dir = (path.absolute() for path in (tls_cert, tls_key, tls_ca, sds_dir))
        tls = ClientTls(str(tls_cert), str(tls_key), str(tls_ca), tls_server_name, str(sds_dir or ""))
    elif given or sds_dir is not None:
        fail("mutual TLS needs --tls-cert, --tls-key and --tls-ca", Exit.USAGE)
    if rest and (grpc or tls is not None):
        fail("--rest is for Envoy, and without TLS: it is served on loopback and unix sockets", Exit.USAGE)
    options = ClientBootstrap(
        node_id=node_id,
        xds=xds,
        cluster=cluster,
        admin=admin,
        is_delta=delta,
        tls=tls,
        poll_s=refresh if rest else 0.0,
    )
    document = grpc_bootstrap(options) if grpc else envoy_bootstrap(options)
    if sds_dir is not None and not grpc:
        sds_dir.mkdir(parents=True, exist_ok=True)
        for name, secret in secret_documents(xds, tls).items():
            (sds_dir / name).write_text(json.dumps(secret, indent=2) + "\n")
    if grpc or output is Format.JSON:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    import yaml

    sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(bootstrap)
