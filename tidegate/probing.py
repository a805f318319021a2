"""Ask a version the bias probes and report what they show.

`python -m tidegate.probing` does so for ever, on schedule, for every version that serves. A probe names its version
(`chat@1.3.0`), so it is no evidence in a rollout. The control plane keeps the reports; the gaps are metrics of the
version in the registry. No answer is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from monitoring.bias_probes import LANGUAGES, Measure, ProbePair
from monitoring.refusals import is_refusal
from rollout.probes.base import GapReport, ProbeReport, ProbeReports
from tidegate.errors import ControlError, TidegateError
from tidegate.settings import Settings, load_settings

if TYPE_CHECKING:
    import httpx

    from tidegate.client import ControlClient

log = logging.getLogger("tidegate.probes")

MOST_TOKENS = 96
TIMEOUT_S = 120.0
MOST_UNANSWERED = 0.1
"""Of the pairs; with more the run has failed, and nothing is reported."""
LOOK_EVERY_S = 60.0
SAVE_AGAIN_AFTER_S = (1.0, 2.0, 5.0, 10.0, 20.0)
RETRY_AFTER_S = 3600.0
"""A version whose probing failed is left alone for so long: it is asked 240 requests each time."""

Score = Callable[[Sequence[str]], Sequence[float]]
"""How toxic each text is, from 0 to 1."""


class ControlReports:
    """The reports that a control plane keeps, as whoever probes knows them.

    Args:
        client: Of the control plane.
        pause: Waits some seconds; replaced in tests.

    """

    def __init__(self, client: ControlClient, pause: Callable[[float], object] = time.sleep) -> None:
        self._client = client
        self._pause = pause

    def load(self, model: str, version: str) -> ProbeReport | None:
        """See `ProbeReports.load`."""
        return self._client.probe_report(model, version)

    def save(self, report: ProbeReport) -> None:
        """See `ProbeReports.save`. While another controller takes the lead it tries again: probing took minutes."""
        for wait_s in (*SAVE_AGAIN_AFTER_S, None):
            try:
                return self._client.keep_probe_report(report)
            except ControlError as error:
                if wait_s is None or error.status not in (0, 503):
                    raise
                self._pause(wait_s)
        return None


def shipped_scorer() -> Score:
    """The shipped toxicity classifier."""
    from guardrails.classifiers.toxicity import ToxicityClassifier

    classifier = ToxicityClassifier()
    return lambda texts: [score.probability for score in classifier.scores(texts)]


def probe(
    ask: Callable[[str], str | None],
    score: Score,
    model: str,
    version: str,
    *,
    languages: Sequence[str] = LANGUAGES,
    say: Callable[[int, int], object] = lambda done, total: None,
) -> ProbeReport:
    """Ask all pairs and compare the answers.

    Args:
        ask: Gives the answer to a prompt, None when there was none.
        score: How toxic texts are.
        model: Registered model.
        version: That is asked.
        languages: Of the prompts.
        say: Told how many pairs are done.

    Raises:
        TidegateError: Too many prompts had no answer.
    """
    import numpy as np

    from monitoring.bias_probes import gaps, probe_pairs

    pairs = probe_pairs(languages)
    answers: list[tuple[str, str] | None] = []
    missing = 0
    for number, pair in enumerate(pairs, 1):
        first = ask(pair.first)
        second = ask(pair.second) if first is not None else None
        answers.append(None if first is None or second is None else (first, second))
        missing += answers[-1] is None
        if missing > MOST_UNANSWERED * len(pairs):  # the rest would only take its time
            raise TidegateError(
                f"{missing} of the first {number} pairs of probes, of {len(pairs)}, had no answer from "
                f"{model}@{version}; is it served? See `tidegate rollout get`"
            )
        say(number, len(pairs))
    measured = _measured(pairs, answers, score)
    found = gaps(pairs, measured, np.random.default_rng(20_260))
    return ProbeReport(
        model=model, version=version, at=time.time(), languages=tuple(languages), pairs=len(pairs), unanswered=missing,
        gaps=tuple(GapReport(**{**dataclasses.asdict(gap), "found": gap.found}) for gap in found),
    )  # fmt: skip


def _measured(
    pairs: Sequence[ProbePair], answers: Sequence[tuple[str, str] | None], score: Score
) -> dict[Measure, list[tuple[float, float] | None]]:
    flat = [text for both in answers if both is not None for text in both]
    toxicity = iter(score(flat))
    return {
        Measure.TOXICITY: [None if both is None else (next(toxicity), next(toxicity)) for both in answers],
        Measure.REFUSAL: [
            None if both is None else (float(is_refusal(both[0])), float(is_refusal(both[1]))) for both in answers
        ],
        Measure.LENGTH: [
            None if both is None else (math.log2(1 + len(both[0])), math.log2(1 + len(both[1]))) for both in answers
        ],
    }


def asker(http: httpx.Client, model: str, version: str) -> Callable[[str], str | None]:
    """Asks the gateway for one version's answer, as little by chance as engines allow."""
    import httpx

    def ask(prompt: str) -> str | None:
        body = {
            "model": f"{model}@{version}", "messages": [{"role": "user", "content": prompt}], "temperature": 0,
            "seed": 1, "max_tokens": MOST_TOKENS,
        }  # fmt: skip
        try:
            reply = http.post("/v1/chat/completions", json=body)
            text = reply.raise_for_status().json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            return None
        return text if isinstance(text, str) else None

    return ask


def log_metrics(settings: Settings, report: ProbeReport) -> None:
    """Add the gaps to the version's metrics in the registry."""
    from tidegate.composition import build_registry

    store = build_registry(settings)
    store.note_evaluation(store.get(report.model, report.version), "bias", metrics_of(report), "")


def metrics_of(report: ProbeReport) -> dict[str, float]:
    """The gaps as metrics of the evaluation `bias`, and how many of them are no chance.

    >>> metrics_of(ProbeReport(model="m", version="1.0.0", at=0, languages=("en",), pairs=0, unanswered=0, gaps=()))
    {'found': 0.0}
    """
    found = {f"{gap.attribute}.{gap.measure}": gap.mean for gap in report.gaps}
    return found | {"found": float(len(report.found))}


@contextlib.contextmanager
def gateway(settings: Settings) -> Iterator[httpx.Client]:
    """The gateway; where it wants keys, with one that holds for an hour and may name versions."""
    import ssl

    import httpx

    from tidegate.client import connect

    headers, made, control = {}, None, None
    if settings.auth == "keys":
        control = connect(settings)
        made = control.create_key(
            name="bias probes", scopes=["inference", "pin-version"], namespace="*", expires_in="1h"
        )
        headers["authorization"] = f"Bearer {made.key}"
    trust: ssl.SSLContext | bool = True
    if settings.tls_cert_file is not None:
        trust = ssl.create_default_context(cafile=str(settings.tls_cert_file))
        trust.check_hostname = False
    try:
        with httpx.Client(
            base_url=settings.own_gateway_url, headers=headers, timeout=TIMEOUT_S, verify=trust, trust_env=False
        ) as http:
            yield http
    finally:
        if control is not None and made is not None:
            with contextlib.suppress(ControlError):  # it expires by itself
                control.revoke_key(made.record.id)
            control.close()


def due(
    served: Sequence[tuple[str, str]],
    reported_at: Mapping[tuple[str, str], float],
    now: float,
    every_s: float,
    failed_at: Mapping[tuple[str, str], float] | None = None,
) -> list[tuple[str, str]]:
    """The versions whose last report is older than the schedule, or missing, and that have not failed just now. Pure.

    >>> due([("chat", "1.0.0"), ("chat", "1.1.0")], {("chat", "1.0.0"): 50.0}, 100.0, 60.0)
    [('chat', '1.1.0')]
    """
    failed = failed_at or {}
    wanted = [one for one in served if one not in reported_at or now - reported_at[one] >= every_s]
    return [one for one in wanted if one not in failed or now - failed[one] >= RETRY_AFTER_S]


def served_now(client: ControlClient) -> list[tuple[str, str]]:
    """(model, version) of everything that serves: stable versions and canaries."""
    return [(s.model, v) for s in client.rollouts() for v in (s.stable, s.canary) if v is not None]


def run_once(
    settings: Settings,
    reports: ProbeReports,
    model: str,
    version: str,
    score: Score,
    **more: Any,  # noqa: ANN401 - forwarded to `probe`
) -> ProbeReport:
    """Probe one version and keep what was found; a registry that does not take it is told of and no failure."""
    with gateway(settings) as http:
        report = probe(asker(http, model, version), score, model, version, **more)
    reports.save(report)
    try:
        log_metrics(settings, report)
    except Exception as error:
        log.warning("%s@%s: its gaps are not in the registry: %s", model, version, error)
    return report


def round_of(
    every_s: float,
    reports: ProbeReports,
    served: Sequence[tuple[str, str]],
    failed_at: dict[tuple[str, str], float],
    run: Callable[[str, str], ProbeReport],
    clock: Callable[[], float] = time.time,
) -> None:
    """Probe what is due, one version after the other; one that fails keeps no other from its turn.

    Args:
        every_s: How long a report counts.
        reports: That there are.
        served: (model, version) of what serves.
        failed_at: When a version's probing failed; kept from round to round, and cleared of what no longer serves.
        run: Probes a version and keeps the report.
        clock: Seconds since the epoch.
    """
    for gone in set(failed_at) - set(served):
        del failed_at[gone]
    known = {one: report.at for one in served if (report := reports.load(*one)) is not None}
    for model, version in due(served, known, clock(), every_s, failed_at):
        try:
            report = run(model, version)
        except (TidegateError, OSError) as error:
            failed_at[model, version] = clock()
            log.warning("%s@%s: %s; again in an hour", model, version, error)
        else:
            failed_at.pop((model, version), None)
            log.info("%s@%s: %d gaps of %d are no chance", model, version, len(report.found), len(report.gaps))


def main() -> None:
    """Probe what serves, again and again."""
    from tidegate.client import connect

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings, score = load_settings(), shipped_scorer()
    failed_at: dict[tuple[str, str], float] = {}
    while True:
        try:
            with connect(settings) as client:
                reports = ControlReports(client)
                run = partial(run_once, settings, reports, score=score)
                round_of(settings.probe_every_h * 3600.0, reports, served_now(client), failed_at, run)
        except TidegateError as error:
            log.warning("%s", error)
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    main()
