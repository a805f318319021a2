"""The gateway's own reading of plain answers agrees with the general parser, or leaves the answer to it."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.answer_heads import plain_head
from serving.gateway.forwarding import client_headers, read_lines

NAMES = st.sampled_from((
    b"content-type", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Server", b"date", b"X-Trace", b"upgrade",
    b"set-cookie", b"x_y", b"trailer",
))  # fmt: skip
VALUES = st.sampled_from((
    b"application/json", b"3", b"03", b"4, 4", b"-1", b"+3", b"chunked", b"close", b"keep-alive", b"Keep-Alive", b"",
    b"a b ", b"\xe4", b"a\x00b", b"a\nb", b"a\rb", b"x-trace",
))  # fmt: skip
LINES = st.builds(lambda name, gap, value: name + gap + value, NAMES, st.sampled_from((b": ", b":", b" : ")), VALUES)
STARTS = st.sampled_from((
    b"HTTP/1.1 200 OK", b"HTTP/1.1 404 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue", b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified", b"HTTP/1.1  200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 503 \xe4",
))  # fmt: skip


class Seen:
    """What the general parser reads."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = self.keep_alive = False
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(data)
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self.body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        self.complete = True


@settings(deadline=None, max_examples=400)
@given(STARTS, st.lists(LINES, max_size=4), st.booleans())
def test_what_is_read_as_a_plain_answer_is_read_the_same_by_the_general_parser(
    start: bytes, lines: list[bytes], framed: bool
) -> None:
    raw = b"\r\n".join([start, *lines, *([b"content-length: 3"] if framed else [])])
    head = plain_head(raw)
    again = plain_head(raw)
    assert (head is None) == (again is None)
    if head is None:
        return
    seen = Seen(raw + b"\r\n\r\n" + b"x" * head.length)
    assert (seen.status, seen.headers, seen.body) == (head.status, head.headers, b"x" * head.length)
    assert seen.complete
    assert seen.keep_alive
    assert read_lines(head.lines) == client_headers(head.headers, ())
    assert again is not None
    assert (again.status, again.headers, again.length) == (head.status, head.headers, head.length)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\nx: y",
        b"HTTP/1.1 200 OK\r\ncontent-length : 3",
        b"HTTP/1.1 200 OK\r\n content-length: 3",
        b"HTTP/1.1 103 Early Hints\r\ncontent-length: 3",
        b"HTTP/1.0 200 OK\r\ncontent-length: 3",
    ],
)
def test_whatever_is_doubtful_is_left_to_the_general_parser(raw: bytes) -> None:
    assert plain_head(raw) is None
