"""The gateway's line to the controller: tables and keys come down, acknowledgements, events, totals and usage go up.

The gateway dials `ws://{control}/internal/v1/gateway` and dials again for ever. A table is applied the moment it is
read, then written to disk, then acknowledged. Events go at once (5 ms are waited for others), in order, and again
after a reconnect until they are accepted. Totals are cumulative and go every 100 ms when something changed; so is
usage, which goes every second and again until it is accepted. Keys are obeyed when they are read, then written to disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from serving.endpoints import EndpointBook
from serving.errors import StaleGeneration
from serving.gateway.key_keeper import KeyKeeper
from serving.gateway.logs import log
from serving.gateway.recorder import Recorder
from serving.gateway.traffic_state import TrafficState, save_table
from serving.gateway.usage_keeper import UsageKeeper
from serving.outcomes import (
    FROM_CONTROLLER,
    Accepted,
    Ack,
    Events,
    Heartbeat,
    Hello,
    KeysPush,
    Refused,
    TablePush,
    Totals,
    UsageAccepted,
)
from serving.traffic import TrafficTable

PATH = "/internal/v1/gateway"
COALESCE_S = 0.005
TOTALS_EVERY_S = 0.1
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0
DIAL_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class _ControllerRefused(Exception):
    """The controller sent `refused`."""


class Channel:
    """Keeps one connection to the controller, for ever."""

    def __init__(
        self,
        *,
        gateway: str,
        boot: str,
        control_url: str,
        credentials_file: Path,
        table_file: Path,
        state: TrafficState,
        book: EndpointBook,
        recorder: Recorder,
        keys: KeyKeeper | None = None,
        usage: UsageKeeper | None = None,
        usable: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._gateway = gateway
        self._boot = boot
        self._url = "ws" + control_url.rstrip("/").removeprefix("http") + PATH
        self._credentials_file = credentials_file
        self._table_file = table_file
        self._state = state
        self._book = book
        self._recorder = recorder
        self._keys = keys
        self._usage = usage
        self._usable = usable
        self._news = asyncio.Event()
        self._totals_sent: tuple[Mapping[str, int], ...] = ()
        self._complaint = ""
        self.connected = False
        recorder.on_event = self._news.set

    async def run(self) -> None:
        """Dial, talk, and dial again with a jittered back-off, until cancelled."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                async with connect(
                    self._url,
                    additional_headers=self._headers(),
                    open_timeout=DIAL_TIMEOUT_S,
                    max_size=MAX_MESSAGE_BYTES,
                    compression=None,
                    proxy=None,
                ) as socket:
                    await self._talk(socket)
                    backoff_s = BACKOFF_FIRST_S
            except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, _ControllerRefused) as e:
                self._complain(type(e).__name__, e)
            except Exception:  # a defect of ours, or of the controller's: a line that is dialled again can be mended
                logging.getLogger("tidegate.gateway").exception("talking to the controller failed; it is tried again")
            finally:
                if self.connected:
                    backoff_s = BACKOFF_FIRST_S
                self.connected = False
            # Jitter, so that many gateways don't dial a restarted controller in one instant.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - nothing secret about it
            backoff_s = min(BACKOFF_MOST_S, 2 * backoff_s)

    def _complain(self, kind: str, error: BaseException) -> None:
        if kind != self._complaint:  # once, not every two seconds
            self._complaint = kind
            log(logging.WARNING, "controller-unavailable", url=self._url, reason=str(error) or kind)

    def _headers(self) -> dict[str, str]:
        try:
            token = self._credentials_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return {}  # the controller will say that it wants one
        return {"Authorization": f"Bearer {token}"}

    async def _talk(self, socket: ClientConnection) -> None:
        self._recorder.outbox.reconnected()
        generation = self._state.generation
        hello = Hello(gateway=self._gateway, boot=self._boot, fence=generation.fence, sequence=generation.sequence)
        await socket.send(hello.model_dump_json())
        self.connected = True
        self._complaint = ""
        log(logging.INFO, "controller-connected", url=self._url)
        self._news.set()
        tasks = [
            asyncio.create_task(self._listen(socket)),
            asyncio.create_task(self._send_events(socket)),
            asyncio.create_task(self._send_totals(socket)),
        ]
        if self._usage is not None:
            tasks.append(asyncio.create_task(self._send_usage(socket, self._usage)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Down

    async def _listen(self, socket: ClientConnection) -> None:
        async for text in socket:
            try:
                # A controller of the next version may say more than this gateway knows of.
                message = FROM_CONTROLLER.validate_json(text, extra="ignore")
            except ValidationError as e:
                log(logging.ERROR, "controller-message-unreadable", errors=e.error_count())
                if _is_table(text):
                    self._state.not_understood()
                continue
            match message:
                case TablePush():
                    await self._table(socket, message.table)
                case Accepted():
                    self._recorder.outbox.accepted(message.through)
                case Heartbeat():
                    self._state.heard(time.monotonic(), message.fence)
                    if self._keys is not None and message.fence >= self._state.generation.fence:
                        await self._keys.heard()
                case KeysPush():
                    if self._keys is not None:
                        await self._keys.pushed(message)
                case UsageAccepted():
                    if self._usage is not None:
                        self._usage.accepted(message.number)
                case Refused():
                    raise _ControllerRefused(message.reason)
                case _:
                    assert_never(message)

    async def _table(self, socket: ClientConnection, table: TrafficTable) -> None:
        try:
            new = self._state.apply(table, time.time())
        except StaleGeneration as e:
            log(logging.WARNING, "table-refused", reason=str(e))
        else:
            self._state.heard(time.monotonic(), table.fence)
            if new and not await self._persist(table):
                return  # without it on disk a restart would go back behind it: so it is not acknowledged
        await self._ack(socket)

    async def _persist(self, table: TrafficTable) -> bool:
        try:
            await asyncio.to_thread(save_table, self._table_file, table)
        except OSError as e:
            log(logging.ERROR, "table-not-saved", path=str(self._table_file), reason=e.strerror,
                way_out="make room or fix the permissions; the table is in force but not acknowledged")  # fmt: skip
            return False
        return True

    async def _ack(self, socket: ClientConnection) -> None:
        """Say which table is in force, whatever was pushed."""
        generation = self._state.generation
        ack = Ack(fence=generation.fence, sequence=generation.sequence, applied_at=self._state.applied_at)
        await socket.send(ack.model_dump_json())

    # Up

    async def _send_events(self, socket: ClientConnection) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            while events := self._recorder.outbox.unsent():
                await socket.send(Events(events=events).model_dump_json())
                self._recorder.outbox.sent(events[-1].sequence)

    async def _send_totals(self, socket: ClientConnection) -> None:
        await self._send_totals_once(socket, everything=True)
        while True:
            await asyncio.sleep(TOTALS_EVERY_S)
            await self._send_totals_once(socket)

    async def _send_totals_once(self, socket: ClientConnection, *, everything: bool = False) -> None:
        recorder = self._recorder
        changed = recorder.ledger.changed(everything=everything)
        rest = (
            recorder.ledger.settled_through(),
            dict(recorder.in_flight),
            self._ready_counts(),
        )
        if not changed and not everything and rest == self._totals_sent:
            return
        message = Totals(
            sent_at=time.time(), totals=changed, settled_through=rest[0], in_flight=rest[1], endpoints_ready=rest[2]
        )
        await socket.send(message.model_dump_json())
        self._totals_sent = rest

    def _ready_counts(self) -> dict[str, int]:
        """Usable endpoints; those of a revision whose guardrails can't be put in force here are none."""
        counts = self._book.ready_counts(time.monotonic())
        return {application: n if self._usable(application) else 0 for application, n in counts.items()}

    async def _send_usage(self, socket: ClientConnection, usage: UsageKeeper) -> None:
        usage.reconnected()
        while True:
            report = await usage.next_report()
            if report is not None:
                await socket.send(report.model_dump_json())
            await usage.pause()


def _is_table(text: str | bytes) -> bool:
    """Whether a message that can't be read as one calls itself a table, or nothing that is known."""
    try:
        message = json.loads(text)
    except ValueError:
        return True
    return not isinstance(message, dict) or message.get("type", "table") == "table"
