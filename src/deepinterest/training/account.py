"""Whether Weights & Biases can be reached with a key; nothing here imports torch."""

from __future__ import annotations

import netrc
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PROBE_SECONDS = 3.0  # to reach the server at all


def base_url() -> str:
    """The server, from the environment or the settings file of `wandb login --host`."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def has_key(url: str) -> bool:
    """Whether a key is configured, in WANDB_API_KEY or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = os.environ.get("NETRC")
    candidates = [Path(path)] if path else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for candidate in candidates:
        try:
            entry = netrc.netrc(str(candidate)).hosts.get(urlsplit(url).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def reachable(url: str, seconds: float) -> bool:
    """Whether the server, or the proxy in front of it, takes a connection."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False
