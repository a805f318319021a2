"""How a gateway and the drift watch of a cluster prove to each other that they hold one key, before any text travels.

On one machine the socket's file mode says who may open it. Over a network both prove it, and the key itself never
travels; frames as in `serving.sightings`:

    watch -> gateway    {"nonce": w}
    gateway -> watch    {"nonce": g, "proof": HMAC-SHA256(key, "gateway", w, g)}
    watch -> gateway    {"proof": HMAC-SHA256(key, "watch", w, g)}

A gateway tells nothing to a watch that has not proved it: whoever takes the watch's address learns no prompt by that
alone. The proof is of the key, not of the line: who stands between both and passes on what each says hears what
follows, and can change it, since it is neither encrypted nor signed, as between gateways and engines. Pure: nonces are
arguments.
"""

from __future__ import annotations

import hashlib
import hmac

import orjson

from serving.sightings import BrokenFrame, framed

NONCE_BYTES = 32
LEAST_KEY_CHARACTERS = 32
MAX_FRAME_BYTES = 512
"""Of what is said before the key is proved."""


def proof(key: str, side: str, watch_nonce: str, gateway_nonce: str) -> str:
    """What shows that a side holds the key. Not the other side's: it can't be sent back as one's own.

    >>> proof("k", "gateway", "a", "b") == proof("k", "watch", "a", "b")
    False
    """
    told = "\0".join(("tidegate drift 1", side, watch_nonce, gateway_nonce))
    return hmac.new(key.encode(), told.encode(), hashlib.sha256).hexdigest()


class WatchSide:
    """The watch's part, on one line."""

    def __init__(self, key: str, nonce: str) -> None:
        self._key = key
        self._nonce = nonce

    @property
    def greeting(self) -> bytes:
        """What it says first."""
        return framed({"nonce": self._nonce})

    def answer(self, body: bytes) -> bytes:
        """The frame that ends it, for a gateway that has proved itself.

        Raises:
            BrokenFrame: it has not.
        """
        said = _read(body)
        nonce = said.get("nonce", "")
        expected = proof(self._key, "gateway", self._nonce, nonce)
        if len(nonce) < 2 * NONCE_BYTES or not hmac.compare_digest(expected, said.get("proof", "")):
            raise BrokenFrame("a gateway has another key; both mount one Secret, and are started anew when it changes")
        return framed({"proof": proof(self._key, "watch", self._nonce, nonce)})


class GatewaySide:
    """The gateway's part, on one line."""

    def __init__(self, key: str, nonce: str) -> None:
        self._key = key
        self._nonce = nonce
        self._watch = ""
        self.proved = False
        """Whether the watch has proved itself: from then on it may be told of requests."""

    def answer(self, body: bytes) -> bytes:
        """The frame to send for what the watch said; empty when it has proved itself.

        Raises:
            BrokenFrame: it has another key, or is no watch.
        """
        said = _read(body)
        if not self._watch:
            self._watch = said.get("nonce", "")
            if len(self._watch) < 2 * NONCE_BYTES:
                raise BrokenFrame("what answers there is no drift watch")
            told = proof(self._key, "gateway", self._watch, self._nonce)
            return framed({"nonce": self._nonce, "proof": told})
        if not hmac.compare_digest(proof(self._key, "watch", self._watch, self._nonce), said.get("proof", "")):
            raise BrokenFrame("the drift watch has another key; both mount one Secret")
        self.proved = True
        return b""


def _read(body: bytes) -> dict[str, str]:
    try:
        said = orjson.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(value, str) and value.isascii() for value in said.values()):
        raise BrokenFrame("that is no introduction of a gateway or a drift watch")
    return said
