"""What `helm test` runs: does the release answer as it should? Standard library only; prints no key.

Environment: CONTROL and GATEWAY are base URLs, ADMIN is HOST:PORT of the gateways' admin port; DRIFT and GUARDRAILS are
base URLs of what may be left out.
"""

import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request

PATIENCE_S = float(os.environ.get("PATIENCE_S", "60"))


def ask(url: str) -> tuple[int, str]:
    """Status and body of a GET; 0 and the reason when nothing answered."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # whether it answers, not who it is
    try:
        with urllib.request.urlopen(url, timeout=5, context=anybody) as answer:  # noqa: S310 - the chart's URLs
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(getattr(error, "reason", error))


def leader() -> tuple[bool, str]:
    """The Service leads to the one controller that leads."""
    status, body = ask(os.environ["CONTROL"] + "/readyz")
    return status == 200 and json.loads(body)["ready"], f"{status} {body[:200]}"


def closed() -> tuple[bool, str]:
    """A gateway asks for a key."""
    status, body = ask(os.environ["GATEWAY"] + "/v1/models")
    return status == 401, f"{status} {body[:200]}"


def gateways() -> tuple[bool, str]:
    """Every gateway is ready and has heard of the controller."""
    host, _, port = os.environ["ADMIN"].rpartition(":")
    try:
        addresses = sorted({found[4][0] for found in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)})
    except OSError as error:
        return False, f"{host}: {error}"
    said = {}
    for address in addresses:
        shown = f"[{address}]" if ":" in address else address
        status, body = ask(f"http://{shown}:{port}/readyz/pod")
        said[address] = f"{status} {body[:200]}"
    return bool(said) and all(text.startswith("200") for text in said.values()), json.dumps(said)


def drift() -> tuple[bool, str]:
    """The drift watch answers, and tells its status to nobody without the key."""
    alive, said = ask(os.environ["DRIFT"] + "/healthz")
    status, body = ask(os.environ["DRIFT"] + "/status")
    return alive == 200 and status == 401, f"{alive} {said[:200]}, {status} {body[:200]}"


def guardrails() -> tuple[bool, str]:
    """The guardrails' models are loaded."""
    status, body = ask(os.environ["GUARDRAILS"] + "/readyz")
    return status == 200, f"{status} {body[:200]}"


def main() -> int:
    """Try each check until it passes or patience is over; returns how many did not pass."""
    failed = 0
    checks = [leader, closed, gateways]
    checks += [check for name, check in (("DRIFT", drift), ("GUARDRAILS", guardrails)) if name in os.environ]
    for check in checks:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            passed, seen = check()
            if passed or time.monotonic() >= deadline:
                break
            time.sleep(1)
        failed += not passed
        print(f"{'ok' if passed else 'FAILED'}: {check.__doc__} {'' if passed else seen}".rstrip(), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
