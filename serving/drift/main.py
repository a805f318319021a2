"""Run the drift watch of this machine: `python -m serving.drift.main --config '{"home": "/home/me/.tidegate"}'`.

One process for all gateways of a home, or of a release on a cluster (docs/adr/0006 says why): it embeds a sample of the
requests that they tell it of and looks for drift, by model, tenant and route. It answers no client, and nothing waits
for it. SIGTERM or SIGINT: what waits is taken in, the state is written, it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported: more threads only get in each other's way

import numpy as np  # noqa: E402
import uvloop  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from guardrails.classifiers.encoder import DIMENSIONS, shared_encoder  # noqa: E402
from serving.drift.acknowledging import hand_over  # noqa: E402
from serving.drift.app import DriftApp  # noqa: E402
from serving.drift.book import Book  # noqa: E402
from serving.drift.config import DriftConfig, InvalidDriftConfig  # noqa: E402
from serving.drift.erasing import erase  # noqa: E402
from serving.drift.intake import listen, listen_on  # noqa: E402
from serving.drift.worker import Worker  # noqa: E402
from serving.gateway.drift_line import read_key  # noqa: E402
from serving.gateway.http_server import HttpServer, ServerLimits  # noqa: E402
from serving.gateway.listening import bind  # noqa: E402
from serving.gateway.logs import configure  # noqa: E402

LIMITS = ServerLimits(body_bytes=8192, connections=64)
NICENESS = 10
"""Gateways and engines go first."""
LOOK_EVERY_S = 0.5
ACK_WAIT_S = 5.0
"""How long an acknowledgement over HTTP waits to be taken in; the watch looks twice a second."""


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts by the encoder that comes with the platform, one row of length 1 each."""
    encoder = shared_encoder()
    return encoder.embed(encoder.cut(texts))


async def serve(config: DriftConfig) -> int:
    """Run until told to stop. Returns the process's exit code.

    Raises:
        InvalidConfig: a port can't be had.
        ValueError: its key can't be read.
        OSError: its socket can't be made.

    """
    key = read_key(config.key_file) if config.key_file is not None else ""
    listener = bind(config.host, config.port, "--drift-port")
    feed = bind(config.feed_host, config.feed_port, "feed_port") if config.feed_host else None
    book = Book(config, embed, DIMENSIONS, np.random.default_rng())
    worker = Worker(book)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    app = DriftApp(
        lambda: worker.status,
        key,
        partial(erase, config.places, DIMENSIONS),
        lambda said: hand_over(config.places, said, ACK_WAIT_S),
    )
    server = HttpServer(app, LIMITS)
    await server.start(listener)
    await asyncio.to_thread(shared_encoder)
    await asyncio.to_thread(book.hold)
    worker.start()
    await asyncio.to_thread(worker.ready.wait)
    # From now on nothing that gateways tell has to wait long.
    gateways = await (listen(config.places.socket, worker) if feed is None else listen_on(feed, key, worker))
    while not (stopping.is_set() or worker.failed):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), LOOK_EVERY_S)
    gateways.close()
    await asyncio.to_thread(worker.stop)
    await server.drain(1.0)
    return 1 if worker.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 for a failure, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m serving.drift.main", description=__doc__)
    parser.add_argument("--config", required=True, help="a DriftConfig as JSON")
    given = parser.parse_args(arguments)
    try:
        config = DriftConfig.from_json(given.config)
    except InvalidDriftConfig as error:
        print(f"drift: {error}", file=sys.stderr)
        return 2
    configure()
    os.nice(NICENESS)
    try:
        return uvloop.run(serve(config))
    except Exception as error:
        logging.getLogger("tidegate.drift").error("the drift watch ended: %s", error)  # noqa: TRY400
        return 1


if __name__ == "__main__":
    sys.exit(main())
