"""TLS of the public port: a context from two files, and the same context with new ones when they change."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from serving.gateway.config import InvalidConfig
from serving.gateway.logs import log

Stamp = tuple[int, int, int, int]


class Certificate:
    """A certificate chain and its key on disk, and the context that servers use. Handshakes under way keep theirs."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Read both files.

        Raises:
            InvalidConfig: one of them can't be read, or they don't belong together.
        """
        self._cert_file = cert_file
        self._key_file = key_file
        self.context = _context()
        self._stamp = self._stamp_now()
        try:
            self.context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as e:
            raise InvalidConfig(
                f"the certificate {cert_file} and the key {key_file} can't be used ({_why(e)}); "
                "both must be PEM and belong together"
            ) from None

    def _stamp_now(self) -> Stamp | None:
        try:
            a, b = os.stat(self._cert_file), os.stat(self._key_file)
        except OSError:
            return None
        return a.st_mtime_ns, a.st_ino, b.st_mtime_ns, b.st_ino

    def reload(self, *, if_changed: bool) -> bool:
        """Use what the files hold now; returns whether that was new. A pair that can't be used changes nothing.

        Between the two writes of a renewal the pair does not match; it is then looked at again with the next call.
        """
        stamp = self._stamp_now()
        if stamp is None or (if_changed and stamp == self._stamp):
            return False
        try:
            _context().load_cert_chain(self._cert_file, self._key_file)
            self.context.load_cert_chain(self._cert_file, self._key_file)
        except (OSError, ssl.SSLError) as e:
            log(logging.ERROR, "certificate-not-reloaded", path=str(self._cert_file), reason=_why(e))
            return False
        self._stamp = stamp
        log(logging.INFO, "certificate-reloaded", path=str(self._cert_file))
        return True


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _why(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or type(error).__name__
