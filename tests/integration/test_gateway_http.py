"""The gateway's own HTTP server on raw sockets: framing, malformed requests, time-outs, back-pressure, TLS, drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trustme
import uvloop

from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.main import Gateway
from serving.traffic import Role
from tests.integration.gateway_fakes import CANARY_DIGEST, Rig, rig, session_on, table, until

pytestmark = pytest.mark.integration

BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "你好"}]}, ensure_ascii=False).encode()
PATH = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def event_loop_policy():
    return uvloop.EventLoopPolicy()


def post(*headers: bytes, body: bytes = BODY, target: bytes = PATH, version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (target, version), b"host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def whole(*headers: bytes, body: bytes = BODY) -> bytes:
    return post(b"content-length: %d" % len(body), *headers, body=body)


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
    return post(b"transfer-encoding: chunked", body=framed + b"0\r\n" + trailers + b"\r\n")


class Wire:
    """One raw connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            status = int(first.split(" ")[1])
            if status == 100:
                return status, headers, b""
            if "content-length" in headers:
                return status, headers, await self.reader.readexactly(int(headers["content-length"]))
            if "transfer-encoding" not in headers:
                return status, headers, await self.reader.read()
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
            return status, headers, body

    async def closed(self) -> bytes:
        """What else comes until the connection is closed."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def wire(r: Rig, limit: int = 2**20) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port, limit=limit)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


GOOD = {
    "content-length": whole(),
    "chunked": chunked(BODY),
    "chunked in single bytes": chunked(*(BODY[i : i + 1] for i in range(len(BODY)))),
    "chunked with an extension and trailers": post(
        b"Transfer-Encoding: Chunked", body=b'%x;name="value"\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n' % (len(BODY), BODY)
    ),
    "an empty line before it": b"\r\n" + whole(),
    "odd but allowed white space": whole(b"x-a: \t b \t"),
    "a percent-encoded path": whole().replace(b"/completions", b"/%63ompletions"),
    "bytes beyond ASCII in a header": whole(b"x-name: \xe4\xbd\xa0"),
}

BAD = {
    "two lengths": (post(b"content-length: 5", b"content-length: 5"), 400),
    "contradicting lengths": (post(b"content-length: 5", b"content-length: 6"), 400),
    "a list of lengths": (post(b"content-length: 5, 5"), 400),
    "a signed length": (post(b"content-length: +5"), 400),
    "a hexadecimal length": (post(b"content-length: 0x5"), 400),
    "an empty length": (post(b"content-length: "), 400),
    "length and chunked": (post(b"content-length: 5", b"transfer-encoding: chunked"), 400),
    "chunked and length": (post(b"transfer-encoding: chunked", b"content-length: 5"), 400),
    "chunked twice": (post(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), 400),
    "chunked twice in one line": (post(b"transfer-encoding: chunked, chunked"), 501),
    "another coding": (post(b"transfer-encoding: gzip, chunked"), 501),
    "identity": (post(b"transfer-encoding: identity"), 501),
    "a coding with a vertical tab": (post(b"transfer-encoding: \x0bchunked"), 400),
    "chunked in HTTP/1.0": (post(b"transfer-encoding: chunked", version=b"1.0"), 400),
    "white space before the colon": (post(b"content-length : 5"), 400),
    "white space before a name": (post(b" x-a: 1"), 400),
    "a folded line": (post(b"x-a: 1\r\n 2", b"content-length: 5"), 400),
    "a bare LF in a header": (post(b"x-a: 1\ncontent-length: 5"), 400),
    "bare LFs only": (post(b"content-length: 5").replace(b"\r\n", b"\n"), 400),
    "a bare CR": (post(b"x-a: 1\rcontent-length: 5"), 400),
    "a NUL in a value": (post(b"x-a: 1\x002"), 400),
    "a NUL in a name": (post(b"x\x00a: 1"), 400),
    "a header without a colon": (post(b"x-a"), 400),
    "an empty name": (post(b": 1"), 400),
    "a name with a bracket": (post(b"x(a): 1"), 400),
    "two hosts": (post(b"host: y"), 400),
    "no host": (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 400),
    "a host with a slash": (b"GET /healthz HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
    "a host with an at sign": (b"GET /healthz HTTP/1.1\r\nhost: a@b\r\n\r\n", 400),
    "an absolute target": (post(target=b"http://x/v1/completions"), 400),
    "an authority as target": (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "an asterisk as target": (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a fragment": (post(target=b"/v1/completions#x"), 400),
    "a broken percent": (post(target=b"/v1/%zz"), 400),
    "a percent at the end": (post(target=b"/v1/models%"), 400),
    "an encoded NUL": (post(target=b"/v1/%00"), 400),
    "an encoded line break": (post(target=b"/v1/x%0d%0ay"), 400),
    "invalid UTF-8 in the path": (post(target=b"/v1/%ff"), 400),
    "raw bytes in the target": (post(target=b"/v1/\xff"), 400),
    "a dot segment": (post(target=b"/v1/../metrics"), 400),
    "an encoded dot segment": (post(target=b"/v1/%2e%2e/metrics"), 400),
    "a backslash": (post(target=b"/v1\\x"), 400),
    "two spaces": (b"GET  /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a tab as separator": (b"GET\t/healthz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a method with a bracket": (b"GE(T /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "no version": (b"GET /healthz\r\nhost: x\r\n\r\n", 400),
    "a version in words": (b"GET /healthz HTTP/one\r\nhost: x\r\n\r\n", 400),
    "a lower-case protocol": (b"GET /healthz http/1.1\r\nhost: x\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /healthz HTTP/1.2\r\nhost: x\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "an unknown expectation": (post(b"expect: 200-ok", b"content-length: 5"), 417),
    "too many headers": (post(*(b"x-%d: 1" % i for i in range(101))), 431),
    "headers too long": (post(*(b"x-%d: %b" % (i, b"a" * 900) for i in range(60))), 431),
    "headers too long, without an end": (b"GET /healthz HTTP/1.1\r\n" + b"x: a\r\n" * 6000, 431),
    "a URL too long": (post(target=b"/v1/" + b"a" * 9000), 414),
    "a URL too long, without an end": (b"GET /" + b"a" * 9000, 414),
    "a chunk size with a sign": (post(b"transfer-encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size with a prefix": (post(b"transfer-encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size in a list": (post(b"transfer-encoding: chunked", body=b"5,5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size of nine digits": (post(b"transfer-encoding: chunked", body=b"000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "no chunk size": (post(b"transfer-encoding: chunked", body=b"\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk longer than stated": (post(b"transfer-encoding: chunked", body=b"4\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk that ends in LF": (post(b"transfer-encoding: chunked", body=b"5\r\nhello\n0\r\n\r\n"), 400),
    "a chunk line that ends in LF": (post(b"transfer-encoding: chunked", body=b"5\nhello\r\n0\r\n\r\n"), 400),
    "a bare CR in an extension": (post(b"transfer-encoding: chunked", body=b"5;\rx\r\nhello\r\n0\r\n\r\n"), 400),
    "an endless extension": (post(b"transfer-encoding: chunked", body=b"5;" + b"x" * 300), 400),
    "a malformed trailer": (post(b"transfer-encoding: chunked", body=b"0\r\nx y: 1\r\n\r\n"), 400),
}  # fmt: skip


async def test_well_formed_requests_are_served_and_the_connection_lives_on(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, wire(r) as w:
        for name, request in GOOD.items():
            w.send(request)
            status, headers, body = await w.answer()
            assert (status, json.loads(body)["object"]) == (200, "chat.completion"), name
            assert "connection" not in headers
            _, engine_saw, sent = r.stable.requests[-1]
            assert (engine_saw["content-length"], sent) == (str(len(BODY)), json.loads(BODY)), name
            assert not engine_saw.keys() & {"transfer-encoding", "expect", "x-trailer"}
        assert r.stable.connections == 1


async def test_malformed_requests_get_a_4xx_and_a_closed_connection(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:
        smuggled = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
        for name, (request, expected) in BAD.items():
            async with wire(r) as w:
                w.send(request + smuggled)
                status, headers, body = await w.answer()
                assert status == expected, (name, status, body)
                assert headers["connection"] == "close", name
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, name
                assert await w.closed() == b"", name  # above all no answer to what came behind it
        assert r.stable.requests == []
        async with wire(r) as w:  # and the gateway is as well as before
            w.send(whole())
            assert (await w.answer())[0] == 200


async def test_malformed_requests_are_refused_however_they_are_cut_into_packets(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:
        for name in ("two lengths", "a folded line", "a chunk longer than stated", "a bare LF in a header"):
            request, expected = BAD[name]
            async with wire(r) as w:
                for i in range(len(request)):
                    w.send(request[i : i + 1])
                    await asyncio.sleep(0)
                assert (await w.answer())[0] == expected, name
        for name, request in GOOD.items():
            async with wire(r) as w:
                for i in range(0, len(request), 3):
                    w.send(request[i : i + 3])
                    await asyncio.sleep(0)
                assert (await w.answer())[0] == 200, name


async def test_names_with_underscores_do_not_reach_an_engine(tmp_path: Path) -> None:
    """Some servers read them like names with hyphens, and so could be told another length than the gateway's."""
    async with rig(tmp_path, first=table(1, None)) as r, wire(r) as w:
        w.send(whole(b"content_length: 3", b"x-kept: 1", b"connection: x-gone", b"x-gone: 1"))
        assert (await w.answer())[0] == 200
        _, headers, _ = r.stable.requests[0]
        assert "content_length" not in headers
        assert "x-gone" not in headers
        assert headers["x-kept"] == "1"


async def test_pipelined_requests_are_answered_in_order_one_at_a_time(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, wire(r) as w:
        delays = iter((0.1, 0.0, 0.05, 0.0))
        r.stable.do = lambda body: {"before_s": next(delays)}
        marks = [json.dumps({"model": "chat", "mark": i, "stream": i % 2 == 1}).encode() for i in range(4)]
        w.send(b"".join(whole(body=m) for m in marks) + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        for i in range(4):
            status, _, body = await w.answer()
            assert status == 200
            assert f"hello {i}".encode() in body
            assert len(r.stable.requests) <= i + 2  # the next one may be on its way, those behind it are not
        assert (await w.answer())[2] == b'{"status":"ok"}'


async def test_many_pipelined_rejections_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, wire(r) as w:
        w.send(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" * 2000)
        for _ in range(2000):
            assert (await w.answer())[0] == 404


async def test_expect_continue_head_and_http_1_0(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:
        async with wire(r) as w:
            w.send(
                whole(b"expect: 100-continue", body=b"")[:-2].replace(b"length: 0", b"length: %d" % len(BODY)) + b"\r\n"
            )
            assert (await w.answer())[0] == 100
            w.send(BODY)
            assert (await w.answer())[0] == 200
            w.send(post(b"expect: 100-continue", b"content-length: 99999999", body=b""))
            status, headers, _ = await w.answer()  # told at once that it need not send it
            assert (status, headers["connection"]) == (413, "close")
        async with wire(r) as w:
            w.send(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await w.reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            assert b"content-length: 0" not in head
            assert (await w.answer())[2] == b'{"status":"ok"}'  # no body of the HEAD before it
        for keep, expected in ((b"keep-alive", "keep-alive"), (b"close", "close")):
            async with wire(r) as w:
                w.send(post(b"content-length: %d" % len(BODY), b"connection: " + keep, version=b"1.0"))
                status, headers, _ = await w.answer()
                assert (status, headers["connection"]) == (200, expected)
        async with wire(r) as w:
            body = json.dumps({"model": "chat", "stream": True}).encode()
            w.send(post(b"content-length: %d" % len(body), body=body, version=b"1.0"))
            status, headers, text = await w.answer()  # no chunks: the end of the connection is the end of the body
            assert "transfer-encoding" not in headers
            assert text.endswith(b"data: [DONE]\n\n")


async def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    deep = b'{"model": "chat", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    bodies = [b"", b"\x00", deep, b'{"model": "chat", "x": NaN}', b'{"model": "chat", "x": "\xff"}',
              b'{"model": "chat"', b'{"model": "chat", "x": ' + b'{"a":' * 300 + b"1" + b"}" * 301]  # fmt: skip
    async with rig(tmp_path, first=table(1, None)) as r, wire(r) as w:
        for body in bodies:
            w.send(whole(body=body))
            status, _, answer = await w.answer()
            assert (status, json.loads(answer)["error"]["code"]) == (400, "invalid_json"), body[:50]
        assert r.stable.requests == []


async def test_slow_clients_are_told_and_closed(tmp_path: Path) -> None:
    times = {"head_within_s": 0.3, "body_within_s": 0.3, "client_idle_s": 0.3}
    async with rig(tmp_path, first=table(1, None), **times) as r:
        async with wire(r) as w:
            w.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
            for _ in range(100):  # a header now and then does not help
                w.send(b"x-a: 1\r\n")
                await asyncio.sleep(0.02)
                if w.reader.at_eof() or w.reader._buffer:  # type: ignore[attr-defined]
                    break
            assert (await w.answer())[0] == 408
            assert await w.closed() == b""
        async with wire(r) as w:
            w.send(post(b"content-length: 100", body=b"{"))
            assert (await w.answer())[0] == 408
            assert await w.closed() == b""
        async with wire(r) as w:
            assert await w.closed() == b""  # it said nothing
        async with wire(r) as w:
            w.send(whole())
            assert (await w.answer())[0] == 200
            assert await w.closed() == b""  # idle
        await until(lambda: r.gateway.data_server.open_connections == 0)


async def test_connections_above_the_limit_get_503(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), max_connections=2) as r:
        async with wire(r) as a, wire(r) as b:
            for w in (a, b):
                w.send(whole())
                assert (await w.answer())[0] == 200
            async with wire(r) as c:
                status, headers, body = await c.answer()
                assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
                error = json.loads(body)["error"]
                assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
        await until(lambda: r.gateway.data_server.open_connections == 0)
        async with wire(r) as w:
            w.send(whole())
            assert (await w.answer())[0] == 200


async def test_a_defect_of_the_gateway_is_not_told_as_the_clients_fault(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient() as http:
        reply = r.gateway.data_app.refuse(500, "The gateway failed to serve this request; try again.")
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (500, "server_error")
        text = (await http.get(f"{r.admin_url}/metrics")).text
        assert 'tidegate_rejections_total{model="",reason="internal_error"} 1.0' in text


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_client_that_goes_away_cancels_its_generation(tmp_path: Path, how: str) -> None:
    """Closing only the sending half counts as going away too, as nginx has it: see http_server."""
    async with rig(tmp_path, first=table(1, 50)) as r:
        r.canary.do = lambda body: {"do": "hang"} if not body.get("stream") else {"chunks": 10_000, "delay_s": 0.01}
        for number, stream in enumerate((False, True), 1):
            body = json.dumps({"model": "chat", "stream": stream}).encode()
            async with wire(r) as w:
                w.send(whole(b"x-session-id: " + session_on(Role.CANARY, 50).encode(), body=body))
                await until(lambda: bool(r.canary.busy))
                if stream:
                    await w.reader.readuntil(b"data: ")
                match how:
                    case "reset":
                        w.writer.transport.abort()
                    case "close":
                        w.writer.close()
                    case _:
                        w.writer.write_eof()
                await until(lambda number=number: r.canary.aborted == number)
        await r.settled()
        assert [e.signal for e in r.controller.events] == ["client-abort"] * 2
        assert r.controller.in_flight[CANARY_DIGEST] == 0


async def test_client_that_reads_nothing_is_cut_and_one_that_reads_slowly_is_not(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), write_within_s=0.5) as r:
        r.stable.do = lambda body: {"chunks": 1500, "piece": "x" * 10_000}
        body = json.dumps({"model": "chat", "stream": True}).encode()
        async with wire(r, limit=1024) as w:
            w.send(whole(body=body))
            await until(lambda: r.stable.aborted == 1, within_s=10)
            assert r.stable.sent_bytes < 14_000_000
        async with wire(r, limit=1024) as w:
            w.send(whole(body=body))
            got = b""
            while b"[DONE]" not in got[-64:]:
                got = (got + await w.reader.read(40_000))[-64:]
                await asyncio.sleep(0.001)
        assert r.stable.aborted == 1


async def test_answers_that_nobody_takes_are_not_heaped_up(tmp_path: Path) -> None:
    """A client that pipelines requests and reads nothing gets no further answers until it does."""
    async with rig(tmp_path, first=table(1, None)) as r, wire(r, limit=1024) as w:
        asked = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 500
        w.send(asked)
        await until(lambda: any(c.writing_paused for c in r.gateway.data_server._connections))
        await asyncio.sleep(0.3)
        (connection,) = r.gateway.data_server._connections
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 1_000_000
        for _ in range(500):  # and then gets all of them
            assert (await w.answer())[0] == 200


async def test_a_drain_cuts_no_answer_off_from_a_client_whose_next_requests_wait(tmp_path: Path) -> None:
    """They are unread: closed on as they are, the kernel would reset what it has not yet sent of earlier answers."""
    async with rig(tmp_path, first=table(1, None), drain_s=5.0) as r, wire(r, limit=1024) as w:
        asked = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        w.send(asked * 500)
        await until(lambda: any(c._reading_paused for c in r.gateway.data_server._connections))
        w.send(asked)
        stopping = asyncio.create_task(r.gateway.stop())
        await until(lambda: r.gateway.data_server.draining)
        await asyncio.sleep(0.05)
        assert (await w.answer())[0] == 200
        while True:  # until the end, between two answers
            try:
                assert (await w.answer())[0] == 200
            except asyncio.IncompleteReadError as end:
                assert end.partial == b""  # noqa: PT017 - it ends the loop, too
                break
        await stopping


async def test_slow_client_that_left_in_its_next_body_ends_nothing_for_others(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), body_within_s=0.3, head_within_s=0.3) as r:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", r.gateway.port))
            r.stable.do = lambda body: {"text": "x" * 60_000}
            for _ in range(100):  # until some of an answer stays with the gateway, little enough to go on
                await loop.sock_sendall(slow, whole())
                served = len(r.stable.requests)
                await until(lambda served=served: len(r.stable.requests) > served or _unsent(r) > 0)
                await asyncio.sleep(0.01)
                if _unsent(r):
                    break
            assert 0 < _unsent(r) < 64 * 1024
            await loop.sock_sendall(slow, post(b"content-length: 1000", body=b"{"))
            await asyncio.sleep(0.05)
            slow.shutdown(socket.SHUT_WR)
            await asyncio.sleep(1.0)
            async with wire(r) as w:  # the watch over slow clients goes on
                w.send(b"POST /v1/completions HTTP/1.1\r\n")
                assert (await w.answer())[0] == 408


def _unsent(r: Rig) -> int:
    transports = (c._transport for c in r.gateway.data_server._connections)
    return sum(t.get_write_buffer_size() for t in transports if t is not None)


async def test_header_of_an_engine_with_a_line_break_is_not_passed_on(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:

        async def evil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nx-a: 1\r\n\tx-b: 2\r\ncontent-length: 2\r\n"
            writer.write(head + b"content-type: application/json\r\n\r\n{}")
            await writer.drain()

        server = await asyncio.start_server(evil, "127.0.0.1", 0)
        r.source.set({"stable-app": [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]})
        async with wire(r) as w:
            w.send(whole())
            status, headers, _ = await w.answer()
            assert "x-b" not in headers
            assert status in (200, 500, 502)
        server.close()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def write_certificate(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    issued = authority.issue_cert(name)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(b.bytes() for b in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return cert, key


async def test_tls_and_its_renewal(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key = write_certificate(authority, tmp_path, "localhost")
    async with rig(tmp_path, first=table(1, None), tls_cert_file=cert, tls_key_file=key) as r:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        port = r.gateway.port

        async def subject() -> str:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context, server_hostname="localhost")
            writer.write(whole())
            status, _, _ = await Wire(reader, writer).answer()
            assert status == 200
            certificate = writer.get_extra_info("peercert")
            writer.close()
            return str(certificate["serialNumber"])

        first = await subject()
        key.write_text("not a key")
        r.gateway.reload()
        assert await subject() == first  # a broken renewal changes nothing
        write_certificate(authority, tmp_path, "localhost")
        r.gateway.reload()
        assert await subject() != first
        old = ssl.create_default_context()
        authority.configure_trust(old)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("localhost", port, ssl=old, server_hostname="localhost")
        async with wire(r) as w:  # plain HTTP to the TLS port
            w.send(whole())
            assert b"200" not in await w.closed()


def test_tls_is_checked_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="both"):
        GatewayConfig(home=tmp_path, tls_cert_file=tmp_path / "c")


async def test_unreadable_certificate_stops_the_start(tmp_path: Path) -> None:
    missing = GatewayConfig(
        home=tmp_path, port=0, admin_port=0, control_url=None, endpoints={}, tls_cert_file=tmp_path / "c",
        tls_key_file=tmp_path / "k",
    )  # fmt: skip
    with pytest.raises(InvalidConfig, match="can't be used"):
        Gateway(missing)


async def test_drain_lets_streams_end_and_closes_everything_else(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), drain_s=5.0, drain_delay_s=1.0) as r:
        r.stable.do = lambda body: {"chunks": 20, "delay_s": 0.03}
        body = json.dumps({"model": "chat", "stream": True}).encode()
        async with wire(r) as streaming, wire(r) as idle, wire(r) as late:
            streaming.send(whole(body=body))
            idle.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            await idle.answer()
            await until(lambda: bool(r.stable.busy))
            stopping = asyncio.create_task(r.gateway.stop())
            await asyncio.sleep(0.05)
            async with httpx.AsyncClient() as http:
                assert (await http.get(r.admin_url + "/readyz")).status_code == 503
            idle.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await idle.answer())[0] == 200  # the port is still open while balancers learn of it
            late.send(whole(body=body)[:-5])
            await until(lambda: r.gateway.data_server.draining)
            assert await idle.closed() == b""
            late.send(whole(body=body)[-5:])
            for w in (streaming, late):
                status, headers, text = await w.answer()
                assert status == 200
                assert text.endswith(b"data: [DONE]\n\n")
                assert await w.closed() == b""
            assert headers["connection"] == "close"
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", r.gateway.port)
            await stopping


async def test_answers_that_outlast_the_drain_window_are_cut_and_counted(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50), drain_s=0.3) as r:
        r.canary.do = lambda body: {"do": "hang"}
        async with wire(r) as w:
            w.send(whole(b"x-session-id: " + session_on(Role.CANARY, 50).encode()))
            await until(lambda: bool(r.canary.busy))
            await r.gateway.stop()
            assert await w.closed() == b""
            await until(lambda: r.canary.aborted == 1)
        assert r.gateway.recorder.ledger.settled_through() == {"chat": 1}


async def test_processes_share_a_port(tmp_path: Path) -> None:
    config = GatewayConfig(home=tmp_path, port=0, admin_port=0, control_url=None, endpoints={})
    first = Gateway(config.for_process(0))
    await first.start()
    shared = GatewayConfig(home=tmp_path, port=first.port, admin_port=0, control_url=None, endpoints={})
    second = Gateway(shared.for_process(1))
    await second.start()
    try:
        seen = set()
        for _ in range(200):
            async with httpx.AsyncClient() as http:
                await http.get(f"http://127.0.0.1:{first.port}/healthz")
            seen = {g.config.name for g in (first, second) if g.data_server.served}
            if len(seen) == 2:
                break
        assert seen == {"gateway-0", "gateway-1"}
        assert config.for_process(3).admin_port == 0
        assert GatewayConfig(home=tmp_path).for_process(3).admin_port == 8004
    finally:
        await first.stop()
        await second.stop()
