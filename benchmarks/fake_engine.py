"""An engine that costs next to nothing, so that what stands in front of it is what gets measured.

    python -m benchmarks.fake_engine PORT [CONTROL_PORT [KEYS_FILE]]

One write for a whole answer, or one for each of 64 events of a stream, a turn of the loop apart. With a control port
it also plays the least controller a gateway can follow: it renews the lease, hands out the keys of a file and accepts
all that is told.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httptools
import uvloop
from websockets.asyncio.server import ServerConnection, serve

CHUNKS = 64
PROSE = (
    "Twice a day the sea comes up the estuary and goes down again. The moon pulls the water nearest to it and leaves "
    "the farther side behind, so that two swells run round the globe. Harbours feel them late, by an hour or by six, "
    "as the shape of their coast decides. Where a bay narrows, the range grows until boats lie on mud at noon. Sailors"
)
"""Prose, not a counted word: answers that repeat themselves are events, and would be measured as such."""


def chunk(text: str, finish: str | None = None) -> bytes:
    """One server-sent event of a chat stream, framed as an HTTP chunk."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    value = {
        "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000,
        "model": "chat", "choices": [choice],
    }  # fmt: skip
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


UNARY = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "chat",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Tides rise and fall twice a day."},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
}).encode()  # fmt: skip
MODELS = json.dumps({"object": "list", "data": [{"id": "chat", "object": "model", "max_model_len": 4096}]}).encode()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECES = [chunk(" " + word) for word in PROSE.split()[: CHUNKS - 1]] + [chunk(".", "stop")]
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def whole(body: bytes) -> bytes:
    """A JSON answer with its head."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Engine(asyncio.Protocol):
    """One connection of the fake engine."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """See httptools."""
        self.body = b""

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self.body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.parser.get_method() == b"GET":
            self.transport.write(whole(MODELS))
        elif b'"stream":true' in self.body or b'"stream": true' in self.body:
            self.transport.write(STREAM_HEAD)
            if b'"hold"' in self.body:  # a stream that begins and goes on for as long as anybody listens
                self.transport.write(PIECES[0])
            else:
                self.next(0)
        else:
            self.transport.write(whole(UNARY))

    def next(self, i: int) -> None:
        """Write one event, and the next a turn of the loop later."""
        if i == CHUNKS:
            self.transport.write(DONE)
            return
        self.transport.write(PIECES[i])
        asyncio.get_running_loop().call_soon(self.next, i + 1)


async def controller(gateway: ServerConnection, keys: list[object]) -> None:
    """Follow one gateway."""

    async def beat() -> None:
        if keys:
            await gateway.send(json.dumps({"type": "keys", "keys": keys}))
        while True:
            await gateway.send('{"type":"heartbeat","fence":1}')
            await asyncio.sleep(1)

    beating = asyncio.create_task(beat())
    try:
        async for text in gateway:
            message = json.loads(text)
            if message["type"] == "events":
                await gateway.send(json.dumps({"type": "accepted", "through": message["events"][-1]["sequence"]}))
            elif message["type"] == "usage":
                await gateway.send(json.dumps({"type": "usage-accepted", "number": message["number"]}))
    finally:
        beating.cancel()


async def main(port: int, control_port: int | None, keys: list[object]) -> None:
    """Run both until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    if control_port is None:
        await server.serve_forever()
    else:
        async with serve(lambda socket: controller(socket, keys), "127.0.0.1", control_port):
            await server.serve_forever()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[3]).read_text()) if len(sys.argv) > 3 else []
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None, given))
