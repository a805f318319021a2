"""Look names up in threads of their own.

A resolver that nobody answers keeps its thread for half a minute and more, whoever has stopped waiting. The event
loop's own threads are few, and answers are checked and keys written there.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

_threads = ThreadPoolExecutor(2, thread_name_prefix="resolver")


async def addresses_of(host: str, port: int) -> list[tuple[Any, ...]]:
    """What `socket.getaddrinfo` says of it, for streams.

    Raises:
        OSError: it has no address, is no name, or nobody knows.
    """
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        return list(await asyncio.get_running_loop().run_in_executor(_threads, look))
    except UnicodeError as error:
        raise OSError(f"{host} is no name: {error}") from None
