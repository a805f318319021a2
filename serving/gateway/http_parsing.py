"""Read the head of a request and a chunked body, strictly. Pure.

What two parsers read differently is how requests are smuggled past one of them. So whatever is doubtful is refused
(RFC 9112): bare LF, folded lines, white space before a colon, control characters, a doubled or contradicting length,
any transfer coding but `chunked`, absolute targets, dot segments, broken percent-encoding. Nothing of the client's
framing goes on to an engine: the gateway writes its own.

A head is read once and remembered: over a kept connection a client sends the same head with every request, but for
the length of the body, and looking it up costs a tenth of reading it. So what was worked out from one is at hand for
the next (`Notes`). Whole heads hold keys and names of sessions; they are remembered in memory only, a thousand at most,
and are looked up by every byte but the length's digits, so nobody gets another one's. Lines that carry nothing personal
are remembered one by one besides, for heads that are new.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from serving.errors import ServingError

Header = tuple[bytes, bytes]

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_TARGET_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 100
MAX_CHUNK_LINE_BYTES: Final = 256

_REMEMBERED_LINES: Final = 2048
_REMEMBERED_BYTES: Final = 128
_REMEMBERED_HEADS: Final = 1024
_REMEMBERED_HEAD_BYTES: Final = 1024

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADER: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)").fullmatch
_START: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])").fullmatch
_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]").search
_HOST: Final = re.compile(rb"[0-9A-Za-z.\-_~%:\[\]]*").fullmatch
_LENGTH: Final = re.compile(rb"[0-9]{1,18}").fullmatch
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e]*)?").fullmatch
_DOUBTFUL: Final = re.compile(rb"(?<!\r)\n|\r[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search

_ONCE: Final = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"expect", b"authorization",
    b"x-session-id", b"x-request-timeout",
))  # fmt: skip
_SAME_EVERY_TIME: Final = frozenset((
    b"host", b"accept", b"accept-encoding", b"accept-language", b"connection", b"content-type", b"user-agent",
    b"content-length", b"origin", b"openai-organization", b"openai-project", b"openai-beta", b"sec-fetch-mode",
    b"transfer-encoding",
))  # fmt: skip


class MalformedRequest(ServingError):
    """What came is no HTTP request that this gateway reads. `status` is the answer; the connection is then closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StartLine:
    """The first line of a request."""

    __slots__ = ("method", "minor", "path", "target")

    def __init__(self, method: str, target: bytes, path: str, minor: int) -> None:
        self.method = method
        self.target = target
        """Path and query as the client wrote them."""
        self.path = path
        """Decoded."""
        self.minor = minor
        """0 for HTTP/1.0, 1 for HTTP/1.1."""


class Notes:
    """What others have worked out from a head: for all requests whose heads are the same but for the body's length."""

    __slots__ = ("caller", "caller_as_of", "passed_on", "session")

    def __init__(self) -> None:
        self.caller: Any = None
        """The gatekeeper's: who it is."""
        self.caller_as_of = -1
        """The gatekeeper's: as of which keys."""
        self.passed_on: bytes | None = None
        """The lines that go on to the engine."""
        self.session: str | None = None
        """The session that a header names."""


class Head:
    """A request without its body. `headers` and `fields` are shared with equal heads: nobody changes them."""

    __slots__ = ("awaits_continue", "fields", "headers", "keep_alive", "length", "notes", "start")

    def __init__(
        self,
        start: StartLine,
        headers: list[Header],
        fields: dict[bytes, bytes],
        length: int | None,
        keep_alive: bool,
        awaits_continue: bool,
        notes: Notes,
    ) -> None:
        self.start = start
        self.headers = headers
        """In the order they came, names in lower case. Of a remembered one without the length."""
        self.fields = fields
        """The same by name; of a repeated one the last."""
        self.length = length
        """Of the body in bytes; None for a chunked one."""
        self.keep_alive = keep_alive
        self.awaits_continue = awaits_continue
        self.notes = notes


_lines: Final[dict[bytes, Header]] = {}
_starts: Final[dict[bytes, StartLine]] = {}
_heads: Final[dict[bytes, Head]] = {}


def parse_head(raw: bytes) -> Head:
    """Read a head.

    Args:
        raw: The bytes before the empty line, at most `MAX_HEAD_BYTES`.

    Raises:
        MalformedRequest: it must not be served.
    """
    at = raw.find(b"ontent-Length: ")
    if at < 0:
        at = raw.find(b"ontent-length: ")
    if at < 3 or raw[at - 3 : at - 1] != b"\r\n" or raw[at - 1 : at] not in (b"c", b"C"):
        return read_head(raw)
    # What is left is looked up: all but the length. It has a line "c" that no good head has, where the length stood, so
    # that one text can't come from two heads that differ in more than the digits.
    end = raw.find(b"\r\n", at)
    if end < 0:
        end = len(raw)
    digits = raw[at + 15 : end]
    text = raw[:at] + raw[end:]
    known = _heads.get(text)
    if known is not None and digits.isdigit() and len(digits) <= 18:
        return Head(
            known.start, known.headers, known.fields, int(digits), known.keep_alive, known.awaits_continue, known.notes
        )
    head = read_head(raw)
    if len(text) <= _REMEMBERED_HEAD_BYTES and head.length is not None:
        if len(_heads) >= _REMEMBERED_HEADS:
            _heads.clear()
        headers = [h for h in head.headers if h[0] != b"content-length"]
        _heads[text] = Head(
            head.start, headers, dict(headers), 0, head.keep_alive, head.awaits_continue, head.notes
        )  # fmt: skip
    return head


def read_head(raw: bytes) -> Head:
    """The same, without looking whether an equal one was read before."""
    texts = raw.split(b"\r\n")
    first = texts[0]
    start = _starts.get(first) or _read_start(first)
    del texts[0]
    if len(texts) > MAX_HEADERS:
        raise MalformedRequest(431, f"The request has {len(texts)} headers; the limit is {MAX_HEADERS}. Send fewer.")
    headers: list[Header] = []
    for text in texts:
        header = _lines.get(text)
        if header is None:
            header = _read_header(text)
            if b"_" in header[0]:  # some servers take x_y for x-y, so it could pass for a header that was checked
                continue
        headers.append(header)
    fields = dict(headers)
    if len(fields) != len(headers):
        _check_doubled(headers)
    return _framed(start, headers, fields)


def _read_start(text: bytes) -> StartLine:
    if len(text) > MAX_TARGET_BYTES + 32:
        raise MalformedRequest(414, f"The URL is longer than {MAX_TARGET_BYTES} bytes, the limit; send a shorter one.")
    found = _START(text)
    if found is None:
        raise MalformedRequest(400, "The first line is no HTTP/1.1 request line: METHOD, one space, target, HTTP/1.1.")
    method, target, major, minor = found.groups()
    if major != b"1" or minor not in b"01":
        raise MalformedRequest(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    start = StartLine(method.decode(), target, _path(target), int(minor))
    if len(text) <= _REMEMBERED_BYTES:
        if len(_starts) >= _REMEMBERED_LINES:
            _starts.clear()
        _starts[text] = start
    return start


def _path(target: bytes) -> str:
    """The decoded path of a target in origin form."""
    if len(target) > MAX_TARGET_BYTES:
        raise MalformedRequest(414, f"The URL is longer than {MAX_TARGET_BYTES} bytes, the limit; send a shorter one.")
    if target[:1] != b"/" or b"#" in target:
        raise MalformedRequest(400, "The request target must be a path that begins with /, without scheme or fragment.")
    if _PERCENT(target) is not None:
        raise MalformedRequest(400, "The URL has a % that two hexadecimal digits don't follow.")
    raw = target.partition(b"?")[0]
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise MalformedRequest(400, "The URL's path is not UTF-8.") from None
    if _CONTROL(path) is not None or "\\" in path:
        raise MalformedRequest(400, "The URL's path holds a control character or a backslash.")
    if "/." in path and {".", ".."} & set(path.split("/")):
        raise MalformedRequest(400, "The URL's path holds a dot segment; send the path that is meant.")
    return path


def _read_header(text: bytes) -> Header:
    found = _HEADER(text)
    if found is None:
        raise MalformedRequest(400, "A header line is malformed: it must be a name, a colon and a printable value.")
    name, value = found.groups()
    header = (name.lower(), value.rstrip(b" \t"))
    remembered = header[0] in _SAME_EVERY_TIME or header[0].startswith(b"x-stainless-")
    if remembered and len(text) <= _REMEMBERED_BYTES:
        if len(_lines) >= _REMEMBERED_LINES:
            _lines.clear()
        _lines[text] = header
    return header


def _check_doubled(headers: list[Header]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _ONCE:
            raise MalformedRequest(400, f"The header {name.decode()} was sent twice; send it once.")
        seen.add(name)


def _framed(start: StartLine, headers: list[Header], fields: dict[bytes, bytes]) -> Head:
    """Where the body ends, and what becomes of the connection."""
    keep_alive = start.minor == 1
    connection = fields.get(b"connection")
    if connection is not None:
        options = connection.lower()
        keep_alive = b"close" not in options if keep_alive else b"keep-alive" in options
    host = fields.get(b"host")
    if host is None and start.minor == 1:
        raise MalformedRequest(400, "The header host is missing; HTTP/1.1 wants exactly one.")
    if host and _HOST(host) is None:
        raise MalformedRequest(400, "The header host is no host name.")
    length: int | None = 0
    stated = fields.get(b"content-length")
    if stated is not None:
        if _LENGTH(stated) is None:
            raise MalformedRequest(400, "content-length is no number.")
        length = int(stated)
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if stated is not None:
            raise MalformedRequest(400, "content-length and transfer-encoding contradict each other; send one of them.")
        if start.minor == 0:
            raise MalformedRequest(400, "HTTP/1.0 has no transfer-encoding; send content-length.")
        if coding.lower() != b"chunked":
            raise MalformedRequest(501, "The only transfer-encoding that is read here is chunked.")
        length = None
    expected = fields.get(b"expect")
    if expected is not None and expected.lower() != b"100-continue":
        raise MalformedRequest(417, "The only expectation that can be met here is 100-continue.")
    return Head(start, headers, fields, length, keep_alive, expected is not None and start.minor == 1, Notes())


def check_beginning(raw: bytes) -> None:
    """Refuse the beginning of a head that can't become a good one, instead of waiting for its end.

    Raises:
        MalformedRequest: it holds a bare CR or LF or a control character (a TLS handshake, say), or is too long.
    """
    if _DOUBTFUL(raw) is not None:
        raise MalformedRequest(400, "The request holds a control character, or a line that CR LF does not end.")
    if b"\r\n" not in raw and len(raw) > MAX_TARGET_BYTES + 32:
        raise MalformedRequest(414, f"The URL is longer than {MAX_TARGET_BYTES} bytes, the limit; send a shorter one.")
    if len(raw) > MAX_HEAD_BYTES:
        raise MalformedRequest(431, f"The headers are longer than {MAX_HEAD_BYTES} bytes, the limit; send fewer.")


class ChunkedBody:
    """Decodes a chunked body piece by piece. Extensions are checked and dropped, so are trailers."""

    __slots__ = ("_left", "_rest", "_trailer_bytes", "_trailers", "size_bytes")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Bytes of the current chunk that are to come, with the CR LF after it."""
        self._trailers = False
        self._trailer_bytes = 0
        self.size_bytes = 0
        """Of the body so far, decoded."""

    def feed(self, data: bytes, parts: list[bytes]) -> bytes | None:
        """Take in bytes of the connection.

        Args:
            data: What came.
            parts: Decoded pieces are appended here.

        Returns:
            None while the body is not complete, afterwards what came behind it.

        Raises:
            MalformedRequest: this is no chunked body.
        """
        data = self._rest + data if self._rest else data
        position = 0
        while True:
            if self._left:
                position = self._chunk(data, position, parts)
                if self._left:
                    self._rest = data[position:]
                    return None
            end = data.find(b"\r\n", position)
            if end < 0:
                self._rest = data[position:]
                self._check_line(self._rest)
                return None
            line = data[position:end]
            position = end + 2
            if self._trailers:
                if not line:
                    self._rest = b""
                    return data[position:]
                self._trailer(line)
                continue
            self._check_line(line)
            self._begin_chunk(line)

    def _chunk(self, data: bytes, position: int, parts: list[bytes]) -> int:
        """Take what is there of the current chunk; `_left` counts the two bytes behind it."""
        wanted = self._left - 2
        if wanted > 0:
            piece = data[position : position + wanted]
            if piece:
                parts.append(piece)
                self.size_bytes += len(piece)
                self._left -= len(piece)
                position += len(piece)
            if self._left > 2:
                return position
        ending = data[position : position + self._left]
        if not b"\r\n".startswith(ending[:2]):
            raise MalformedRequest(400, "A chunk of the body is longer than its stated size.")
        if len(ending) == 2:
            self._left = 0
            position += 2
        return position

    def _check_line(self, line: bytes) -> None:
        if len(line) > MAX_CHUNK_LINE_BYTES and not self._trailers:
            raise MalformedRequest(400, f"A chunk's size line is longer than {MAX_CHUNK_LINE_BYTES} bytes, the limit.")
        if _DOUBTFUL(line) is not None:
            raise MalformedRequest(400, "A chunk's size line holds a control character or a bare CR or LF.")
        if len(line) > MAX_HEAD_BYTES:
            raise MalformedRequest(431, f"The trailers are longer than {MAX_HEAD_BYTES} bytes, the limit.")

    def _begin_chunk(self, line: bytes) -> None:
        found = _CHUNK(line)
        if found is None:
            raise MalformedRequest(400, "A chunk's size is no hexadecimal number of at most 8 digits.")
        size = int(found[1], 16)
        if size:
            self._left = size + 2
        else:
            self._trailers = True

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise MalformedRequest(431, f"The trailers are longer than {MAX_HEAD_BYTES} bytes, the limit.")
        _read_header(line)
