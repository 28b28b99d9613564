"""Finds the plug-ins that are installed beside xdsbpf, by their entry points.

Who can install a package here runs code here anyway, so every plug-in found is used; `xdsbpf plugins` lists them.
Called at start by `serve` and by the command line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from xdsbpf.errors import ConfigError
from xdsbpf.plugin import GROUP, LoadedPlugin, Plugin


def load_plugins(found: Iterable[EntryPoint] | None = None) -> tuple[LoadedPlugin, ...]:
    """All plug-ins in the order in which they are applied: by name, then distribution.

    `found` are the entry points to load, by default those of the environment. Raises: ConfigError for one that
    cannot be loaded or is no Plugin: serving without it would not be what was asked for.
    """
    loaded = [_load(entry) for entry in (entry_points(group=GROUP) if found is None else found)]
    ordered = tuple(sorted(loaded, key=lambda entry: (entry.name, entry.distribution)))
    for earlier, later in itertools.pairwise(ordered):
        if earlier.name == later.name:
            text = f"two plug-ins are named {later.name}: of {earlier.distribution} and {later.distribution}"
            raise ConfigError(text, hint="uninstall one of them")
    return ordered


def _load(entry: EntryPoint) -> LoadedPlugin:
    distribution = entry.dist.name if entry.dist is not None else "?"
    version = entry.dist.version if entry.dist is not None else "?"
    hint = "repair or uninstall it"
    try:
        plugin = entry.load()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        text = f"plug-in {entry.name} of {distribution} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigError(text, hint=hint) from error
    if not isinstance(plugin, Plugin):
        raise ConfigError(
            f"plug-in {entry.name} of {distribution}: {entry.value} is no xdsbpf.plugin.Plugin", hint=hint
        )
    return LoadedPlugin(entry.name, version, distribution, plugin)
