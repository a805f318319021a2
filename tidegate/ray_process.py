"""Ray as one supervised process: `python -m tidegate.ray_process` starts this home's Ray and ends when it does.

SIGTERM and SIGINT end it and everything below it; its death is this process's death, so that the supervisor sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from tidegate.ray_head import RayHead, RayStartFailed
from tidegate.settings import Settings, load_settings


async def keep(settings: Settings) -> int:
    """Run Ray until told to stop (0), or until it dies or can't be started (1). Its last line says why."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    head = RayHead(settings)
    told = asyncio.create_task(stopping.wait())
    living = asyncio.create_task(_live(head))
    try:
        await asyncio.wait({told, living}, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            return 0
        print(living.result(), flush=True)
        return 1
    finally:
        living.cancel()
        told.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living
        await head.stop()


async def _live(head: RayHead) -> str:
    """Start and wait for the end; returns why it ended."""
    try:
        took_s = await head.start()
    except RayStartFailed as error:
        return str(error)
    print(f"Ray answers after {took_s:.1f} s", flush=True)
    return await head.wait_for_death()


def main() -> None:
    """Entry of the process."""
    sys.exit(asyncio.run(keep(load_settings())))


if __name__ == "__main__":
    main()
