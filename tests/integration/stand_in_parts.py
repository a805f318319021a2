"""Stand-ins for Ray, the control plane and the gateway: `python stand_in_parts.py PART PORT... `, plain HTTP servers.

The control plane deploys whatever it is asked for; a version 6.6.6 never becomes ready.
"""

import json
import pathlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS: dict[str, dict[str, object]] = {}


class Handler(BaseHTTPRequestHandler):
    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")

    def log_message(self, *_: object) -> None:
        pass


class Control(Handler):
    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._send(200, {})
        elif self.path == "/api/v1/status":
            self._send(200, {"controller": {"leads": True}})
        elif self.path == "/api/v1/models":
            self._send(200, {"models": list(MODELS.values())})
        else:
            found = MODELS.get(self.path.rsplit("/", 1)[-1])
            error = {"error": {"code": "unknown_rollout", "message": "never deployed"}}
            self._send(200 if found else 404, found or error)

    def do_POST(self) -> None:
        spec = self._body()["spec"]
        bad = spec["version"] == "6.6.6"
        MODELS[spec["model"]] = {
            "model": spec["model"],
            "phase": "Degraded" if bad else "Healthy",
            "stable": None if bad else spec["version"],
            "reason": "it can't be served: out of luck" if bad else "promoted",
        }
        self._send(202, {"decision": {}, "status": MODELS[spec["model"]]})


class Gateway(Handler):
    def do_GET(self) -> None:
        self._send(200, {"models": {model: {"1.0.0": {"ready": True}} for model in ("chat", "bad")}})

    def do_POST(self) -> None:
        model = self._body()["model"]
        self._send(503 if model == "bad" else 200, {"choices": [{}]})


def main() -> None:
    part, *rest = sys.argv[1:]
    if part == "ray":
        time.sleep(0.3)
        pathlib.Path(rest[0]).write_text("{}")
        time.sleep(1000)
    handler = Control if part == "controller" else Gateway
    servers = [ThreadingHTTPServer(("127.0.0.1", int(port)), handler) for port in rest]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


main()
