"""Without a network: the hub's libraries look into their cache only, where they would try again for a minute."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def cache_alone() -> Iterator[None]:
    """Put the hub's libraries offline while its name cannot be looked up; what they then miss is a `ConnectionError`.

    Where a proxy looks names up, or the name is known, they keep their own patience.
    """
    from huggingface_hub import constants, utils

    hub = urlsplit(constants.ENDPOINT)
    try:
        if not (constants.HF_HUB_OFFLINE or getproxies().get(hub.scheme)):
            socket.getaddrinfo(hub.hostname, None)
    except OSError as error:
        why = f"{hub.hostname}: {error.strerror or error}"
    else:
        yield
        return
    renew = getattr(utils, "reset_sessions", lambda: None)  # before version 1 a session remembers
    places = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    switches = [patch.object(place, "HF_HUB_OFFLINE", True) for place in places]
    try:
        for switch in switches:
            switch.start()
        renew()
        yield
    except OSError as error:
        raise ConnectionError(f"no network ({why}), and it is not in the cache") from error
    finally:
        for switch in switches:
            switch.stop()
        renew()
