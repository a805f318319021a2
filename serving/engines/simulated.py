"""The simulated engine: answers like vLLM's OpenAI server, with the speed and the faults that a `sim:` URI asks for.

    python -m serving.engines.simulated --uri 'sim:?ttft_ms=50&itl_ms=5' --port 9000 --model chat

It is a real process on a real port, in a single file of asyncio.Protocol so that it starts at once and costs little
next to what is being tested. The n-th request of a process meets the same fate in every run with the same seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import httptools

from serving.addresses import base_url
from serving.engines.base import EngineCommand, Listener, bind_listener
from serving.engines.lifeline import PARENT_PID_VARIABLE, die_with_parent
from serving.engines.sim_answers import Choice, make_choice
from serving.engines.sim_cache import PrefixCache
from serving.engines.sim_openai import answer, encode_embedding, error_body, stream_events
from serving.engines.sim_requests import Ask, BadRequest, read_ask
from serving.engines.sim_spec import InvalidSimUri, SimSpec, parse_sim_uri
from serving.engines.sim_text import count_tokens, embedding, split_tokens
from serving.errors import EngineStartFailed
from serving.specs import RevisionSpec

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def command(spec: RevisionSpec, listener: Listener) -> EngineCommand:
    """How to start the simulated engine of a revision.

    Raises:
        EngineStartFailed: its source is not a valid `sim:` URI.
    """
    try:
        parse_sim_uri(spec.source)
    except InvalidSimUri as error:
        raise EngineStartFailed(f"simulated engine of {spec.model}@{spec.version}: {error} [permanent]") from error
    argv = [sys.executable, "-m", "serving.engines.simulated", "--uri", spec.source, "--model", spec.model]
    argv += ["--fd", str(listener.fd), "--max-model-len", spec.engine_args.get("max_model_len") or "0"]
    return EngineCommand(tuple(argv))


class Engine:
    """Answers requests. One per process."""

    def __init__(self, spec: SimSpec, model: str, max_model_len: int = 0) -> None:
        self.spec = spec
        self.model = model
        self.max_model_len = max_model_len
        self.fingerprint = f"sim-{spec.seed}"
        """OpenAI's `system_fingerprint`: with seeds of their own, engines can be told apart by their answers."""
        self.ready = False
        self.running = 0
        self.begun = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.cache = PrefixCache(spec.cache_blocks)
        self.cached_tokens = 0
        self._prefill = asyncio.Lock()
        self.connections: set[Connection] = set()

    async def handle(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        """Answer one request."""
        match method, path:
            case "GET", "/health" | "/ping":
                connection.reply(200 if self.ready else 503, b"", "text/plain")
            case "GET", "/v1/models":
                connection.reply_json(200, self._models())
            case "GET", "/metrics":
                connection.reply(200, self._metrics().encode(), "text/plain; version=0.0.4")
            case "GET", "/version":
                connection.reply_json(200, {"version": "simulated"})
            case "POST", "/v1/embeddings":
                await self._guarded(connection, path, body, self._embed)
            case "POST", _ if path in GENERATING:
                await self._guarded(connection, path, body, self._generate)
            case _, _ if path in (*GENERATING, "/v1/embeddings", "/v1/models"):
                connection.reply_json(405, error_body("Method Not Allowed", "MethodNotAllowedError", 405))
            case _:
                connection.reply_json(404, error_body("Not Found", "NotFoundError", 404))

    async def _guarded(
        self,
        connection: Connection,
        path: str,
        body: bytes,
        work: Callable[[Connection, Ask, random.Random, bool], Coroutine[Any, Any, None]],
    ) -> None:
        """Do what requests of every route share: draw a fate, meet the faults, count."""
        self.begun += 1
        if self.spec.die_after and self.begun >= self.spec.die_after:
            _die(f"RuntimeError: simulated death at request {self.begun} (die_after={self.spec.die_after})")
        rng = random.Random(f"{self.spec.seed}:{self.begun}")  # noqa: S311 - not for secrets
        fate = rng.random()
        self.running += 1
        try:
            ask = read_ask(path, body, self.model)
            self._check_length(ask)
            fate -= self.spec.client_error_rate
            if fate < 0:
                message = "simulated: the engine does not support this request"
                connection.reply_json(400, error_body(message, "BadRequestError", 400))
                return
            fate -= self.spec.error_rate
            if fate < 0:
                connection.reply_json(503, error_body("simulated engine failure", "InternalServerError", 503))
                return
            fate -= self.spec.stall_rate
            if fate < 0:
                await asyncio.Event().wait()
            await work(connection, ask, rng, fate < self.spec.truncate_rate)
        except BadRequest as error:
            kind = "NotFoundError" if error.status == 404 else "BadRequestError"
            connection.reply_json(error.status, error_body(str(error), kind, error.status, error.param))
        finally:
            self.running -= 1

    def _check_length(self, ask: Ask) -> None:
        wanted = ask.prompt_tokens + (ask.max_tokens or 0)
        if self.max_model_len and wanted > self.max_model_len:
            raise BadRequest(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested {wanted} "
                "tokens. Please reduce the length of the messages or completion."
            )

    async def _generate(self, connection: Connection, ask: Ask, rng: random.Random, truncate: bool) -> None:
        choices = [make_choice(ask, prompt, self.spec, rng) for prompt in ask.prompts for _ in range(ask.n)]
        self.prompt_tokens += ask.prompt_tokens
        prefix = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}.get(ask.route, "resp_")
        request_id, now_s = prefix + uuid.UUID(int=rng.getrandbits(128)).hex, int(time.time())
        steps = max(c.count for c in choices)
        await asyncio.sleep(self.spec.ttft_ms / 1000)
        if self.spec.prefill_us_per_token or self.spec.cache_blocks:
            ask = await self._read_prompts(ask)
        if ask.stream:
            await self._stream(connection, ask, choices, request_id, now_s, steps // 2 if truncate else None)
            return
        await asyncio.sleep(self.spec.itl_ms / 1000 * max(steps - 1, 0))
        self.generation_tokens += sum(c.count for c in choices)
        body = json.dumps(answer(ask, choices, request_id, self.model, now_s, self.fingerprint)).encode()
        connection.reply(200, body, "application/json", only=len(body) // 2 if truncate else None)

    async def _read_prompts(self, ask: Ask) -> Ask:
        """Take the time that reading the prompts takes: what is cached is free, and one prompt waits for the other."""
        cached = 0
        for prompt in ask.prompts:
            tokens = split_tokens(prompt)
            async with self._prefill:  # a batch shares one processor: two prompts take as long as one after the other
                found = self.cache.cached_tokens(tokens)
                await asyncio.sleep((len(tokens) - found) * self.spec.prefill_us_per_token / 1e6)
                self.cache.keep(tokens)
            cached += found
        self.cached_tokens += cached
        return replace(ask, cached_tokens=cached) if self.spec.cache_blocks else ask

    async def _stream(
        self, connection: Connection, ask: Ask, choices: list[Choice], request_id: str, now_s: int, cut_at: int | None
    ) -> None:
        connection.begin_stream()
        due = asyncio.get_running_loop().time()
        for step, events in enumerate(stream_events(ask, choices, request_id, self.model, now_s, self.fingerprint)):
            if step == cut_at:
                connection.cut()
                return
            connection.send_chunk(b"".join(events))
            self.generation_tokens += sum(step < c.count for c in choices)
            if self.spec.itl_ms and step + 1 < max(c.count for c in choices):
                due += self.spec.itl_ms / 1000  # a schedule, not pauses added up: late wake-ups do not accumulate
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            await connection.writable.wait()
        connection.end_stream()

    async def _embed(self, connection: Connection, ask: Ask, rng: random.Random, truncate: bool) -> None:
        del rng
        await asyncio.sleep(self.spec.ttft_ms / 1000)
        self.prompt_tokens += ask.prompt_tokens
        tokens = sum(map(count_tokens, ask.prompts))
        vectors = [encode_embedding(embedding(p, ask.dimensions), ask.base64) for p in ask.prompts]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = json.dumps({"object": "list", "model": self.model, "data": data, "usage": counted}).encode()
        connection.reply(200, body, "application/json", only=len(body) // 2 if truncate else None)

    def _models(self) -> dict[str, Any]:
        card = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "tidegate"}
        return {"object": "list", "data": [{**card, "root": self.model, "max_model_len": self.max_model_len or None}]}

    def _metrics(self) -> str:
        label = f'{{model_name="{self.model}"}}'
        rows = (
            ("vllm:num_requests_running", "gauge", self.running),
            ("vllm:num_requests_waiting", "gauge", 0),
            ("vllm:prompt_tokens_total", "counter", self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", self.generation_tokens),
            ("vllm:prefix_cache_queries_total", "counter", self.prompt_tokens),
            ("vllm:prefix_cache_hits_total", "counter", self.cached_tokens),
        )
        return "".join(f"# TYPE {name} {kind}\n{name}{label} {value}\n" for name, kind, value in rows)


class Connection(asyncio.Protocol):
    """One client's connection: HTTP/1.1 with keep-alive, one request at a time; later ones wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""
        self._body: list[bytes] = []
        self._waiting: list[tuple[str, str, bytes]] = []
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.writable = asyncio.Event()
        self.writable.set()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what was being answered: the client is gone."""
        del exc
        self._transport = None
        self._engine.connections.discard(self)
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.reply_json(400, error_body("not an HTTP request", "BadRequestError", 400))
            self.cut()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writable.set()

    def on_message_begin(self) -> None:
        """A request begins (httptools)."""
        self._path, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        """Part of the request target (httptools)."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Answer `Expect: 100-continue`, as curl sends with long bodies (httptools)."""
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of the body (httptools)."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A request is there as a whole (httptools)."""
        path = self._path.split(b"?", 1)[0].decode("latin-1")
        self._waiting.append((self._parser.get_method().decode(), path, b"".join(self._body)))
        if not self._parser.should_keep_alive():
            self._closing = True
        self._next()

    def close_when_idle(self) -> None:
        """Close after the answer under way, or at once."""
        self._closing = True
        if not self.busy and self._transport:
            self._transport.close()

    def _next(self) -> None:
        if self._task is None and self._waiting:
            method, path, body = self._waiting.pop(0)
            self._task = asyncio.ensure_future(self._engine.handle(self, method, path, body))
            self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            self.cut()
        elif self._closing and not self._waiting and self._transport:
            self._transport.close()
        else:
            self._next()

    def _write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    def reply(self, status: int, body: bytes, kind: str, only: int | None = None) -> None:
        """Send a whole answer, or `only` the first bytes of it and then hang up."""
        close = b"connection: close\r\n" if self._closing else b""
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        self._write(head.encode() + close + b"\r\n" + body[:only])
        if only is not None:
            self.cut()

    def reply_json(self, status: int, body: dict[str, Any]) -> None:
        """Send a whole answer in JSON."""
        self.reply(status, json.dumps(body).encode(), "application/json")

    def begin_stream(self) -> None:
        """Send the head of a stream of events."""
        close = b"connection: close\r\n" if self._closing else b""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
        self._write(head + close + b"\r\n")

    def send_chunk(self, data: bytes) -> None:
        """Send a part of a stream."""
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """End a stream as it should end."""
        self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection after what was written."""
        if self._transport:
            self._transport.close()


def _die(message: str) -> None:
    """End the process at once, as a crash does."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(1)


async def serve(engine: Engine, sock: socket.socket) -> None:
    """Load, serve until SIGTERM or SIGINT, then let what is in flight finish."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    if engine.spec.load_s:
        try:
            await asyncio.wait_for(stop.wait(), engine.spec.load_s)
        except TimeoutError:
            pass
        else:
            return
    if engine.spec.fail_load:
        _die("ValueError: simulated failure to load (fail_load=1)")
    server = await loop.create_server(lambda: Connection(engine), sock=sock, backlog=2048)
    engine.ready = True
    await stop.wait()
    server.close()
    for connection in list(engine.connections):
        connection.close_when_idle()
    while any(connection.busy for connection in engine.connections):  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # only while it stops


def main(argv: list[str] | None = None) -> None:
    """Run the simulated engine from the command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.simulated", description="a simulated engine")
    parser.add_argument("--uri", default="sim:", help="its behaviour, for instance 'sim:?ttft_ms=50&error_rate=0.1'")
    parser.add_argument("--model", default="chat", help="the model's name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one and prints it")
    parser.add_argument("--fd", type=int, help="descriptor of a bound socket, instead of --host and --port")
    parser.add_argument("--max-model-len", type=int, default=0, help="longest request in tokens; 0: no limit")
    args = parser.parse_args(argv)
    if os.environ.get(PARENT_PID_VARIABLE):
        die_with_parent()
    try:
        spec = parse_sim_uri(args.uri)
        sock = socket.socket(fileno=args.fd) if args.fd is not None else bind_listener(args.host, args.port).sock
    except (InvalidSimUri, EngineStartFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    host, port = sock.getsockname()[:2]
    sys.stdout.write(f"simulated engine of {args.model} on {base_url(host, port)}\n")
    sys.stdout.flush()
    asyncio.run(serve(Engine(spec, args.model, args.max_model_len), sock))


if __name__ == "__main__":
    main()
