"""A way to the controller's API through the API server: a port-forward to the pod that leads. Shell; blocks.

Spoken is what kubelets have always understood: a WebSocket of the subprotocol `v4.channel.k8s.io`, the first byte of
whose messages is a channel. Of the one port that is asked for, channel 0 carries data and channel 1 what went wrong;
each begins with a message that holds the port's number, little-endian. When the pod ends, so does the WebSocket.

The official client has this too (`kubernetes.stream.portforward`), but connects and waits without a time limit, makes
of what the API server refuses an error without its reason, and hides what the kubelet says behind an early end.
"""

from __future__ import annotations

import io
import ssl
import urllib.request
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from websocket import (
    ABNF,
    WebSocket,
    WebSocketBadStatusException,
    WebSocketException,
    WebSocketTimeoutException,
    create_connection,
)

from rollout.errors import ClusterUnavailable
from rollout.operator.api import ANSWER_S, CONNECT_S, Address, asked, token_of, translated

LEADER = "app.kubernetes.io/component=controller,tidegate.dev/leader=true"
CONTROL_PORT = 8080
PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1
"""The channels of the first port."""
SILENT_S = 60.0
"""How long an answer may come to a halt. The controller's longest work for one answer is a replay of its log."""


class PodConnection:
    """A connection to a port of a pod, as far as `http.client` needs a socket of it. One request, one answer."""

    def __init__(self, line: WebSocket, port: int, pod: str) -> None:
        """Take over an open WebSocket; `pod` is for messages."""
        self._readers = 0
        self._closed = False
        self._line: Any = line  # parts of that library have no types
        self._port = port
        self._pod = pod
        self._begun: set[int] = set()
        self._ended = False

    def sendall(self, data: bytes) -> None:
        """Send bytes to the pod.

        Raises:
            ConnectionError: it has gone.
            ClusterUnavailable: the kubelet says that it can't reach the port.

        """
        try:
            self._line.send_binary(bytes((DATA,)) + data)
        except (WebSocketException, OSError) as error:
            self.receive()  # says why, if the kubelet did
            raise ConnectionResetError(f"the port-forward to {self._pod} was closed ({error})") from None

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:  # noqa: ANN401 - as a socket's
        """What the pod sends, until it closes its side."""
        self._readers += 1
        return io.BufferedReader(_Received(self))

    def receive(self) -> bytes:
        """The next bytes from the pod; none when it has closed its side.

        Raises:
            TimeoutError: nothing came for long.
            ClusterUnavailable: the kubelet says that it can't reach the port.

        """
        while not self._ended:
            try:
                opcode, frame = self._line.recv_data_frame()  # a whole message; pings are answered on the way
            except WebSocketTimeoutException:
                raise TimeoutError(f"{self._pod} sent nothing for {SILENT_S:.0f} s") from None
            except (WebSocketException, OSError):  # an answer that was cut is noticed by its length
                break
            if opcode == ABNF.OPCODE_CLOSE:
                break
            content = self._content(bytes(frame.data or b""))
            if content and opcode == ABNF.OPCODE_BINARY:
                return content
        self._ended = True
        return b""

    def _content(self, message: bytes) -> bytes:
        """What a message brings for the reader, nothing for what is about the port-forward itself."""
        channel, content = message[:1], message[1:]
        if channel not in (b"\x00", b"\x01"):
            return b""  # what no kubelet of today sends
        if channel[0] not in self._begun:
            self._begun.add(channel[0])
            if content == self._port.to_bytes(2, "little"):
                return b""
        if channel[0] == ERROR and content:
            told = content[:500].decode("utf-8", "replace").strip()
            raise ClusterUnavailable(f"the kubelet of {self._pod} can't forward to port {self._port}: {told}")
        return content

    def close(self) -> None:
        """End the port-forward; as with a socket, not before what was made of it is closed too.

        `http.client` closes first and then reads the answer.
        """
        self._closed = True
        if not self._readers:
            self._line.shutdown()

    def reader_closed(self) -> None:
        """What `makefile` gave was closed."""
        self._readers -= 1
        if self._closed and not self._readers:
            self._line.shutdown()


class _Received(io.RawIOBase):
    def __init__(self, connection: PodConnection) -> None:
        self._connection = connection
        self._rest = memoryview(b"")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection.reader_closed()

    def readable(self) -> Literal[True]:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - a buffer that can be written
        if not self._rest:
            self._rest = memoryview(self._connection.receive())
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def open_controller(address: Address, namespace: str) -> PodConnection:
    """A connection to the API of the controller that leads in a namespace.

    Raises:
        ClusterError: there is none, or it can't be reached.

    """
    configuration = address.configuration()
    core: Any = client.CoreV1Api(client.ApiClient(configuration))
    within = (CONNECT_S, ANSWER_S)
    pods = asked(
        lambda: core.list_namespaced_pod(namespace, label_selector=LEADER, _request_timeout=within).items,
        f"look for the controller in {namespace}",
    )
    if not pods:
        raise ClusterUnavailable(
            f"no controller leads in namespace {namespace}; name the release's namespace with --release-namespace, or "
            f"look at `kubectl get pods -n {namespace} -l app.kubernetes.io/component=controller`"
        )
    return forward(configuration, namespace, pods[0].metadata.name, CONTROL_PORT)


def forward(configuration: client.Configuration, namespace: str, pod: str, port: int) -> PodConnection:
    """A connection to a port of a pod.

    Raises:
        ClusterError: the API server does not answer, or refuses.

    """
    what = f"forward port {port} of {namespace}/{pod}"
    base = configuration.host.replace("http", "ws", 1).rstrip("/")
    url = f"{base}/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/portforward?ports={port}"
    try:
        line = create_connection(
            url,
            timeout=ANSWER_S,
            subprotocols=[PROTOCOL],
            header=_credentials(configuration),
            sslopt=_tls(configuration) if url.startswith("wss:") else None,
            **_proxy(configuration),
        )
    except WebSocketBadStatusException as error:
        answer = ApiException(status=error.status_code, reason=error.status_message)
        answer.body = bytes(error.resp_body or b"").decode("utf-8", "replace")
        raise translated(answer, what) from None
    except (WebSocketException, OSError) as error:
        raise ClusterUnavailable(f"{what}: the API server does not answer ({type(error).__name__})") from None
    line.settimeout(SILENT_S)
    return PodConnection(line, port, f"{namespace}/{pod}")


def _credentials(configuration: client.Configuration) -> dict[str, str]:
    """The header by which the configuration's user is known; none for who has a certificate."""
    token = token_of(configuration)
    return {"authorization": f"Bearer {token}"} if token else {}


def _tls(configuration: client.Configuration) -> dict[str, Any]:
    made = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if configuration.cert_file:
        made.load_cert_chain(configuration.cert_file, configuration.key_file)
    named = configuration.tls_server_name
    return {"context": made, **({"server_hostname": named} if named else {})}


def _proxy(configuration: client.Configuration) -> dict[str, Any]:
    """The kubeconfig's own proxy; what the environment says, with its exceptions, is the library's to find."""
    given = str(configuration.proxy or "")
    if not given or given in urllib.request.getproxies().values():
        return {}
    found = urlsplit(given)
    signed_in = (found.username, found.password or "") if found.username else None
    return {"http_proxy_host": found.hostname, "http_proxy_port": found.port, "http_proxy_auth": signed_in}
