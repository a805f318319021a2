"""ModelDeployments as they change: kopf lists, watches, and begins again whenever the API server lets it down. Shell.

kopf has a thread and an event loop of its own. It takes every task of its loop that was made after its start for its
own, and cancels them all when it ends, which it does when the API server is away for long; in the controller's loop
that would be the end of the rollouts. What it sees is handed over to the controller's loop.

Only its lowest layer is used, the stream of events: its handlers for creation and change would write annotations and a
finalizer of their own into each resource, and what was handled is remembered by the event log, not by annotations.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import kopf

from rollout.errors import ClusterError, ClusterRejected, ResourceGone
from rollout.operator.api import Address, ResourceApi, token_of
from rollout.operator.names import DEFINITION, GROUP, PLURAL, VERSION

log = logging.getLogger(__name__)

AGAIN_S = (1.0, 30.0)
"""The first and the longest pause before watching is begun anew."""
WORKS_S = 20.0
"""A watch that has not ended by then was let in: kopf asks again for about nine seconds before it gives up."""
LASTED_S = 30.0
"""A watch that went on for so long was one: what ended it has nothing to do with the pauses before."""
REFUSALS = frozenset({"APIForbiddenError", "APIUnauthorizedError", "LoginError"})
"""kopf's errors for which somebody has to put a right in order; it gives them no public names."""
WATCH_S = 300
"""How long the API server may keep one watch open; then it is opened again from where it was."""
SILENT_S = 120.0
"""A watch on which nothing came for so long, not even one of the bookmarks that come every minute, is dead."""
CLOSED_S = 60.0
"""How often it is looked whether a namespace that may not be read has been opened."""

Body = Mapping[str, Any]


class Watcher:
    """Hands every ModelDeployment of some namespaces over to somebody, as it is now and whenever it changes.

    Args:
        address: the cluster.
        namespaces: where to look.
        listed: takes a listing, and the namespaces that it can tell nothing of.
        changed: takes one resource, and whether it is gone.

    Both are called in the event loop in which `run` was.

    """

    def __init__(
        self,
        *,
        address: Address,
        namespaces: tuple[str, ...],
        listed: Callable[[Sequence[Body], Collection[str]], None],
        changed: Callable[[Body, bool], None],
    ) -> None:
        self._address = address
        self._namespaces = namespaces
        self._listed = listed
        self._changed = changed
        self._stop = threading.Event()
        self._over = threading.Event()
        """Ends the watches that run now."""
        self.message = ""
        """Why nothing is seen; empty while it is."""
        self.refused = False
        """Whether that is for want of a right, so that it lasts until somebody puts it right."""

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            try:
                self._watch_for_ever(loop)
            finally:
                _hand_over(loop, done.set)

        thread = threading.Thread(target=work, name="modeldeployments", daemon=True)
        thread.start()
        try:
            await done.wait()
        finally:
            self._stop.set()
            self._over.set()

    def _watch_for_ever(self, loop: asyncio.AbstractEventLoop) -> None:
        pause_s = AGAIN_S[0]
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                opened = self._list(loop)
                self._watch(loop, opened)
            except ResourceGone:
                self._failed(f"the cluster does not know {DEFINITION}; install the chart's crds/ folder")
            except ClusterError as error:
                self._failed(str(error), refused=isinstance(error, ClusterRejected))
            except Exception as error:  # kopf raises what its parts raise; all of it means: begin anew
                refused = not REFUSALS.isdisjoint(kind.__name__ for kind in type(error).__mro__)
                way_out = "; see the table of rights in docs/kubernetes.md" if refused else ""
                said = error.args[0] if refused and error.args else error
                told = f"watching {PLURAL} ended: {type(error).__name__}: {said}"[:400]
                self._failed(told + way_out, refused=refused)
            pause_s = AGAIN_S[0] if time.monotonic() - began > LASTED_S else pause_s
            self._stop.wait(pause_s)
            pause_s = min(AGAIN_S[1], 2 * pause_s)

    def _failed(self, message: str, *, refused: bool = False) -> None:
        if message != self.message:
            log.warning("%s; trying again", message)
        self.message, self.refused = message, refused

    def _list(self, loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
        """A complete listing first: only who has all of them can tell who claims a model's name.

        A namespace that may not be read holds up no other: with one that somebody deletes the rights in it go too.
        Returns those that may be.
        """
        api = ResourceApi(self._address.configuration(), user_agent="tidegate-operator")
        found: list[Body] = []
        closed: dict[str, ClusterRejected] = {}
        try:
            for namespace in self._namespaces:
                try:
                    found += api.list_all((namespace,))
                except ClusterRejected as error:
                    closed[namespace] = error
        finally:
            api.close()
        opened = tuple(n for n in self._namespaces if n not in closed)
        if not opened:
            raise next(iter(closed.values()))
        if closed:
            self._failed("; ".join(f"nothing of namespace {n} is seen: {error}" for n, error in closed.items()))
        elif not self.refused:  # else it is the watch that says whether it works again
            self.message = ""
        _hand_over(loop, lambda: self._listed(found, tuple(closed)))
        return opened

    def _watch(self, loop: asyncio.AbstractEventLoop, opened: tuple[str, ...]) -> None:
        self._over = over = threading.Event()
        if self._stop.is_set():
            return
        again = threading.Timer(CLOSED_S, over.set)
        works = threading.Timer(WORKS_S, self._works)
        again.daemon = works.daemon = True
        works.start()
        if len(opened) < len(self._namespaces):
            again.start()
        try:
            self._watch_until(loop, opened, over)
        finally:
            again.cancel()
            works.cancel()
            over.set()  # a thread of kopf's waits for it, and would keep the process from ending

    def _works(self) -> None:
        if self.refused:
            self.message, self.refused = "", False

    def _watch_until(self, loop: asyncio.AbstractEventLoop, opened: tuple[str, ...], over: threading.Event) -> None:
        registry = kopf.OperatorRegistry()
        self._login(registry)

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def seen(event: Mapping[str, Any], **_: object) -> None:
            body, gone = dict(event["object"]), event["type"] == "DELETED"
            if event["type"] is not None:  # not of the list that a watch begins with, which may be allowed all the same
                self._works()
            _hand_over(loop, lambda: self._changed(body, gone))

        own = asyncio.new_event_loop()
        try:
            own.run_until_complete(
                kopf.operator(
                    registry=registry,
                    settings=_settings(),
                    standalone=True,
                    namespaces=list(opened),
                    stop_flag=over,
                )
            )
        finally:
            own.close()

    def _login(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf how to reach the API server; asked again whenever it is refused, for a newer token."""

        @kopf.on.login(registry=registry)
        def login(**_: object) -> kopf.ConnectionInfo:
            found = self._address.configuration()
            token = token_of(found)
            return kopf.ConnectionInfo(
                server=found.host,
                ca_path=found.ssl_ca_cert,
                insecure=not found.verify_ssl,
                token=token or None,
                scheme="Bearer" if token else None,
                username=found.username or None,
                password=found.password or None,
                certificate_path=found.cert_file,
                private_key_path=found.key_file,
            )


def _settings() -> kopf.OperatorSettings:
    """Least rights: nothing but our own resources is looked at, and no Events are posted by kopf."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = WATCH_S
    settings.watching.inactivity_timeout = SILENT_S
    settings.watching.reconnect_backoff = 0.1
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = [0.5, 1, 2, 5]
    return settings


def _hand_over(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # that loop is closed: nobody wants to know any more
        log.debug("nobody is there to be told")
