"""The manifests a lab is made from: Deployments, Pods and Services, as the control plane would read them.

Input: paths. Output: `LabManifests`. Called by `bringup`; reads through `sources`, so that the lab and the
control plane agree on what a file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from xdsbpf.diagnostics import Severity
from xdsbpf.model.kube import Deployment, Pod, Service
from xdsbpf.sources.loading import load_once


class LabManifests(msgspec.Struct, frozen=True):
    """What the lab reads of the user's files; `errors` counts findings of severity error."""

    deployments: tuple[Deployment, ...]
    pods: tuple[Pod, ...]
    services: tuple[Service, ...]
    errors: int = 0


def read_manifests(paths: Sequence[Path]) -> LabManifests:
    """Read files and directories once. Raises: ConfigError for a path that does not exist."""
    catalog = load_once([str(path) for path in paths])
    found = list(catalog.manifests().values())
    return LabManifests(
        tuple(manifest for manifest in found if isinstance(manifest, Deployment)),
        tuple(manifest for manifest in found if isinstance(manifest, Pod)),
        tuple(sorted((m for m in found if isinstance(m, Service)), key=lambda m: (m.namespace, m.name))),
        sum(finding.severity is Severity.ERROR for finding in catalog.diagnostics()),
    )
