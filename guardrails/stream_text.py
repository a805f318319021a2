"""The text of one stream: what has come, of which the beginning is let go again. Pure.

Positions count from the beginning of the stream. Bytes and half surrogate pairs that are cut off by the end of a
chunk wait for the next one, so that the text is the same however it was cut.
"""

from __future__ import annotations

import codecs
import re

TRIM_CHARACTERS = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")


class StreamText:
    """Text that grows at its end and is forgotten at its beginning."""

    __slots__ = ("_base", "_half", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._base = 0
        self._half = ""

    @property
    def end(self) -> int:
        """How much has come."""
        return self._base + len(self._text)

    def add(self, chunk: str) -> None:
        """Take what has come. Two halves of a surrogate pair become one character, a lone half becomes U+FFFD."""
        if not chunk.isascii() or self._half:
            chunk = self._half + chunk
            self._half = ""
            if chunk and "\ud800" <= chunk[-1] <= "\udbff":
                chunk, self._half = chunk[:-1], chunk[-1]
            if _SURROGATE.search(chunk):
                chunk = chunk.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self._text += chunk

    def complete(self) -> None:
        """Nothing comes any more; half a pair that was left becomes U+FFFD."""
        if self._half:
            self._text += "\ufffd"
            self._half = ""

    def part(self, start: int, end: int) -> str:
        """The text between two positions; what was forgotten is left out."""
        return self._text[max(0, start - self._base) : end - self._base]

    def local(self, position: int) -> int:
        """A position as an index into `text`."""
        return position - self._base

    @property
    def text(self) -> str:
        """All that is still remembered."""
        return self._text

    def forget(self, before: int) -> None:
        """Let go of what nobody needs any more, now and then."""
        surplus = before - self._base
        if surplus > TRIM_CHARACTERS:
            self._text = self._text[surplus:]
            self._base = before


class Utf8Chunks:
    """Bytes that may be cut anywhere, also inside a character, as text. Bytes that are no UTF-8 become U+FFFD.

    >>> chunks = Utf8Chunks()
    >>> data = "潮".encode()
    >>> chunks.feed(data[:2]), chunks.feed(data[2:]), chunks.finish()
    ('', '潮', '')
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that are complete now."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD if a character was cut off for good."""
        return self._decoder.decode(b"", final=True)
