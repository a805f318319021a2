"""Ask a version what others were asked before: logged prompts, sent through the gateway with the version named."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from serving.openai_protocol import Operation
from serving.streaming import read_body

PATHS = {
    Operation.CHAT: "/v1/chat/completions",
    Operation.COMPLETIONS: "/v1/completions",
    Operation.RESPONSES: "/v1/responses",
    Operation.EMBEDDINGS: "/v1/embeddings",
}
ANSWER_TIMEOUT_S = 600.0


class Replay:
    """Asks one gateway. Use it as a context manager.

    Args:
        base_url: the gateway's.
        key: an API key that may name versions, "" where none is needed.
        certificate: its own, where it speaks TLS; trusted beside those that this machine trusts.
        transport: for tests; None means the network.
    """

    def __init__(
        self,
        base_url: str,
        key: str = "",
        *,
        certificate: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        trusted = ssl.create_default_context()
        if certificate is not None:
            trusted.load_verify_locations(certificate)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=ANSWER_TIMEOUT_S, verify=trusted, transport=transport,
            trust_env=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ask(self, lines: Sequence[dict[str, Any]], model: str, version: str, at_once: int) -> list[dict[str, Any]]:
        """Both answers to each logged request, in its order.

        Args:
            lines: of the log, each with its prompt.
            model: who is asked.
            version: in which version.
            at_once: how many requests may be under way.
        """
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda line: self._one(line, model, version), lines))

    def _one(self, line: dict[str, Any], model: str, version: str) -> dict[str, Any]:
        operation = Operation(line["operation"])
        body = {k: v for k, v in line["prompt"].items() if k not in ("stream", "stream_options")}
        case = {
            "request_id": line.get("request_id"),
            "inputs": line["prompt"],
            "logged_version": line.get("answered_by") or line["version"],
            "logged_answers": line.get("answers") or [],
            "version": version,
            "answers": [],
            "status": 0,
            "error": "",
        }
        path = PATHS.get(operation)
        if path is None:
            return {**case, "error": "what was asked can't be asked again"}
        try:
            answer = self._http.post(path, json={**body, "model": f"{model}@{version}"})
        except httpx.HTTPError as error:
            return {**case, "error": f"{type(error).__name__}: {error}"}
        case |= {"status": answer.status_code, "replay_request_id": answer.headers.get("x-request-id")}
        if answer.status_code != httpx.codes.OK:
            return {**case, "error": answer.text[:300]}
        return {**case, "answers": list(read_body(operation, answer.content).texts)}
