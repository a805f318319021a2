"""Choose an endpoint: filter -> score in [0, 1] -> pick. Pure; `now` (monotonic seconds) and chance are arguments.

Filters
    not tried before for this request; not draining; not ejected, or half-open without a probe under way; load within
    the bound of `scoring.bound_of`. Every pick therefore keeps the imbalance bounded, whatever the scorers say.
Scorers
    load: 1 - load / bound. Prefix: blocks of the prompt that the endpoint was sent before, over all its blocks.
Picker
    the highest weighted sum. Ties go to the home of a prompt that nobody has seen (`affinity.home_rank`), and then to
    the endpoint that was used longest ago, which makes round robin of equals.

Up to 16 endpoints all are scored: full knowledge is better than a sample, and costs under 10 us. Beyond, with a source
of chance, two at random and up to eight that have seen the prompt are: the power of two choices (Mitzenmacher, 2001).

Ejection
    A refused connection is a fact: nobody listens. The endpoint gets nothing for 1 s, doubling to 30 s. Bad answers
    (5xx, cut short) are an inference, and may be the fault of the version instead: then all replicas give them, each
    is as good as any other, and sending requests elsewhere would only hide the evidence that a rollout is judged on.
    So five in a row eject an endpoint only while most of its peers have answered well last, never more than half of
    them, and an application whose endpoints are all out still counts as ready while one of them was ejected for its
    answers. From the first bad answer to the next good one no prompt draws requests there, so that the peers get some
    and it can be told which of the two it is.
    After its time an endpoint is half-open: the next request probes it, one at a time and never a second attempt, and
    the first good answer brings it back. A good answer to any request does so at any time.

Slow outliers and fresh endpoints are not ejected; their work counts more (`scoring.load_of`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol
from urllib.parse import urlsplit
from zlib import crc32

from serving.affinity import BlockMemory, home_rank
from serving.knobs import Picking
from serving.scoring import (
    STREAMING_TOKENS,
    TYPICAL_ANSWER_TOKENS,
    Demand,
    answer_work,
    bound_of,
    load_of,
    prompt_work,
    ramp_of,
    slowness,
)

EJECTION_FIRST_S: Final = 1.0
EJECTION_MOST_S: Final = 30.0
FORGIVEN_AFTER_S: Final = 60.0
"""An endpoint that comes back and fails again within this time stays away twice as long as before."""

PROBE_LEASE_S: Final = 10.0
"""A probe that hangs longer makes room for the next one."""

WARM_UP_REQUESTS: Final = 3
"""The first requests of a replica compile and fill caches: they give no latency evidence."""

SCANNED_ENDPOINTS: Final = 16
"""Up to so many are all scored."""

MOST_HOLDERS: Final = 8
"""Of more, so many that have seen the prompt's beginning are scored, beside two at random."""

JUDGED_AFTER: Final = 8
"""Answers from which on an endpoint's time to first token is compared, and again after each so many."""

SLOW_FOR_S: Final = 60.0
"""Without new evidence an endpoint is slow for so long, and then gets another chance."""

SMOOTHING: Final = 0.2
"""Weight of the newest value in moving means."""

_DEFAULT: Final = Picking()


class Chance(Protocol):
    """A source of chance, such as `random.Random`."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine answers. `boot` changes when the engine was started anew at the same address."""

    url: str
    boot: str = ""
    draining: bool = field(default=False, compare=False)
    """It ends what it has begun and gets nothing new; everything known of it stays."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One engine process as this gateway sees it."""

    application: str
    address: Address
    host: str
    port: int
    prefix: str
    draining: bool = False
    outstanding: int = 0
    """Requests of this gateway under way there."""
    work: int = 0
    """What they still demand, in tokens."""
    served: int = 0
    """Requests sent there since it was first seen."""
    used_at: float = float("-inf")
    seed: int = 0
    key: tuple[str, int] = ("", 0)
    """Host and port."""
    authority: bytes = b""
    """The same as a header writes them."""

    failures: int = 0
    """Ejections in a row."""
    ejected_until: float = 0.0
    """Above 0: ejected, from then on half-open."""
    was_out_until: float = float("-inf")
    """Where its last ejection for bad answers would have ended."""
    for_answers: bool = False
    """Ejected for bad answers, not for a refused connection."""
    probed_until: float = 0.0
    bad_answers: int = 0
    """In a row."""
    well: bool = False
    """Whether its last answer was a good one; not before the first."""

    joined_at: float | None = None
    """When it could first have been picked, which begins its slow start."""
    joined_served: int = 0
    full: bool = False
    """Its weight is 1: neither fresh nor slow."""
    slow: float = 1.0
    slow_until: float = 0.0
    first_token_s: float = 0.0
    """Moving mean; 0 before the first answer."""
    timed: int = -WARM_UP_REQUESTS
    """Answers in it; those of the warm-up are not."""
    typical_tokens: float = TYPICAL_ANSWER_TOKENS
    """Length of its answers, a moving mean."""
    memory: BlockMemory = field(default_factory=BlockMemory)

    @property
    def url(self) -> str:
        """The base URL."""
        return self.address.url

    @property
    def probing(self) -> bool:
        """Whether a probe is under way."""
        return self.probed_until > 0


def endpoint_of(application: str, address: Address) -> Endpoint:
    """Read an address.

    Raises:
        ValueError: the URL is not `http://host:port[/prefix]`.
    """
    parts = urlsplit(address.url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"endpoint {address.url!r} of {application!r}: expected http://host:port[/prefix]")
    prefix, seed = parts.path.rstrip("/"), crc32(address.url.encode())
    host, port = parts.hostname, parts.port or 80
    return Endpoint(
        application, address, host, port, prefix, address.draining, seed=seed,
        key=(host, port), authority=(f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode(),
    )  # fmt: skip


# --- filters


def usable(endpoint: Endpoint, now: float) -> bool:
    """Not draining, and not ejected or half-open without a probe under way."""
    if endpoint.draining:
        return False
    return endpoint.ejected_until == 0 or (now >= endpoint.ejected_until and now >= endpoint.probed_until)


def taking(candidates: Sequence[Endpoint], now: float) -> list[Endpoint]:
    """Those that take requests: the usable ones, else those that were ejected for bad answers only.

    An inference must not take a revision out of service: when all are ejected the inference was wrong.
    """
    found = [e for e in candidates if usable(e, now)]
    return found or [e for e in candidates if e.for_answers and not e.draining]


# --- the picker


def pick(
    candidates: Sequence[Endpoint],
    now: float,
    exclude: Collection[str] = (),
    demand: Demand | None = None,
    picking: Picking = _DEFAULT,
    chance: Chance | None = None,
) -> Endpoint | None:
    """Choose an endpoint for a request; when all are out, the first to come back.

    Args:
        candidates: Endpoints of one application.
        now: Monotonic seconds.
        exclude: URLs that were tried already for this request.
        demand: What the request demands. Without it no prompt is looked for.
        picking: Weights and bounds.
        chance: For more than 16 endpoints; without it all are scored.

    Returns:
        An endpoint, or None when every one is excluded or draining. Cost: under 10 us for 16 endpoints.
    """
    untried = [e for e in candidates if e.address.url not in exclude] if exclude else candidates
    found = [e for e in untried if e.ejected_until == 0 and not e.draining]
    if len(found) < len(untried) and not (found and exclude):
        probed = next((e for e in untried if e.ejected_until and usable(e, now)), None)
        if probed is not None:
            return probed  # scores would starve it where the others have seen the prompt
        found = found or taking(untried, now)
    if len(found) <= 1:
        if found:
            if not found[0].full:
                _load(found[0], now, picking)  # it is warm by the time that others join it
            return found[0]
        return min((e for e in untried if not e.draining), key=lambda e: e.ejected_until, default=None)
    chain = demand.chain if demand is not None and picking.prefix_weight else ()
    if chance is None or len(found) <= SCANNED_ENDPOINTS:
        loads = [e.work if e.full else _load(e, now, picking) for e in found]
        bound = bound_of(loads, picking)
    else:
        mean = [sum(e.work for e in found) / len(found)]
        found = _sample(found, chain, chance)
        loads = [e.work if e.full else _load(e, now, picking) for e in found]
        bound = max(bound_of(mean, picking), min(loads))
    return _best(found, loads, bound, chain, demand.head if demand is not None else 0, picking)


def _best(
    found: Sequence[Endpoint],
    loads: Sequence[float],
    bound: float,
    chain: tuple[int, ...],
    head: int,
    picking: Picking,
) -> Endpoint | None:
    """The highest score among those within the bound; the first tie-breaker is the home of an unseen prompt.

    The load scorer's 1 is left out of the sum: all have it.
    """
    load_scale = picking.load_weight / (bound if bound < float("inf") else max(loads)) if any(loads) else 0.0
    prefix_scale = picking.prefix_weight / len(chain) if chain else 0.0
    best, best_score, best_load, best_matched = None, 0.0, 0.0, 0
    for endpoint, load in zip(found, loads, strict=True):
        if load > bound:
            continue
        matched = 0
        if chain and not endpoint.bad_answers:
            if (
                best is not None
                and load > best_load
                and not (best_matched < len(chain) and endpoint.memory.has(chain[best_matched]))
            ):
                continue  # more load and no longer match: it can't win, and its match need not be found
            matched = endpoint.memory.matched(chain)
        score = prefix_scale * matched - load_scale * load
        if best is not None:
            if score < best_score:
                continue
            if score == best_score:
                unseen = chain and matched == best_matched == 0
                mine, other = (home_rank(head, e.seed) if unseen else 0 for e in (endpoint, best))
                if mine < other or (mine == other and endpoint.used_at >= best.used_at):
                    continue
        best, best_score, best_load, best_matched = endpoint, score, load, matched
    return best


def _load(endpoint: Endpoint, now: float, picking: Picking) -> float:
    """The load of an endpoint that is fresh or slow, and the end of being so."""
    if endpoint.joined_at is None:
        endpoint.joined_at, endpoint.joined_served = now, endpoint.served
    ramp = ramp_of(now - endpoint.joined_at, endpoint.served - endpoint.joined_served, picking)
    if endpoint.slow < 1 and now >= endpoint.slow_until:
        endpoint.slow, endpoint.timed, endpoint.first_token_s = 1.0, 0, 0.0
    endpoint.full = ramp == 1 and endpoint.slow == 1
    return load_of(endpoint.work, ramp, endpoint.slow)


def _sample(found: list[Endpoint], chain: tuple[int, ...], chance: Chance) -> list[Endpoint]:
    """Two at random and, beginning at a random place, up to eight that have seen the prompt's first block."""
    count = len(found)
    first = int(chance.random() * count)
    second = (first + 1 + int(chance.random() * (count - 1))) % count
    chosen = [found[first], found[second]]
    if chain:
        holders = (e for e in (*found[first:], *found[:first]) if e.memory.has(chain[0]))
        chosen += [e for e in islice(holders, MOST_HOLDERS) if e not in chosen]
    return chosen


# --- what happens to a request


def dispatched(endpoint: Endpoint, now: float, demand: Demand | None = None) -> bool:
    """Note that a request goes there. Returns whether it falls into the replica's warm-up.

    Args:
        endpoint: Where it goes.
        now: Monotonic seconds.
        demand: What it demands; the same is given to `progressed` and `finished`. Without it, it counts 256 tokens.
    """
    if endpoint.ejected_until and now >= endpoint.ejected_until and now >= endpoint.probed_until:
        endpoint.probed_until = now + PROBE_LEASE_S
        if demand is not None:
            demand.probe = True
    endpoint.outstanding += 1
    endpoint.served += 1
    endpoint.used_at = now
    if demand is None:
        endpoint.work += TYPICAL_ANSWER_TOKENS
    else:
        demand.answered_tokens = 0
        if demand.prompt_tokens:  # with a single endpoint nobody looked
            demand.prompt_work = prompt_work(demand, endpoint.memory.matched(demand.chain))
        demand.answer_work = max(STREAMING_TOKENS, answer_work(demand, endpoint.typical_tokens))
        endpoint.work += demand.prompt_work + demand.answer_work
        if demand.chain:
            endpoint.memory.remember(demand.chain)
    return endpoint.served <= WARM_UP_REQUESTS


def progressed(endpoint: Endpoint, demand: Demand, tokens: int) -> None:
    """Note that so many more tokens have come: the prompt was read, and so much of the answer is done. Cheap."""
    endpoint.work -= demand.prompt_work
    demand.prompt_work = 0
    if not tokens:
        return
    demand.answered_tokens += tokens
    done = min(tokens, demand.answer_work - STREAMING_TOKENS)
    demand.answer_work -= done
    endpoint.work -= done


def finished(endpoint: Endpoint, demand: Demand | None = None) -> None:
    """Note that a request there has ended, well or badly. Once for each `dispatched`, with the same demand."""
    endpoint.outstanding -= 1
    if demand is None:
        endpoint.work -= TYPICAL_ANSWER_TOKENS
        endpoint.probed_until = 0.0
        return
    endpoint.work -= demand.prompt_work + demand.answer_work
    demand.prompt_work = demand.answer_work = 0
    if demand.answered_tokens:
        endpoint.typical_tokens += SMOOTHING * (demand.answered_tokens - endpoint.typical_tokens)
    if demand.probe:
        demand.probe = False
        endpoint.probed_until = 0.0


# --- how it is with an endpoint


def connected(endpoint: Endpoint) -> None:
    """Note that it accepted a connection and answered, well or badly: somebody listens there."""
    if not endpoint.for_answers and endpoint.ejected_until:
        endpoint.failures = 0
        endpoint.ejected_until = endpoint.probed_until = 0.0


def succeeded(endpoint: Endpoint) -> None:
    """Note a good answer: it is not ejected any more, and bad answers are counted from 0."""
    endpoint.bad_answers = 0
    endpoint.well = True
    if endpoint.ejected_until:
        if endpoint.for_answers:
            endpoint.was_out_until = endpoint.ejected_until  # remembered for a minute: it may be flapping
        else:
            endpoint.failures = 0
        endpoint.for_answers = False
        endpoint.ejected_until = endpoint.probed_until = 0.0


def connect_failed(endpoint: Endpoint, now: float) -> None:
    """Note a refused connection, or that the engine was found gone: eject for 1 s, 2 s, 4 s, ... 30 s.

    What comes back is another process, so its cache is taken to be empty and it starts slowly.
    """
    if endpoint.ejected_until == 0 or endpoint.probing or now >= endpoint.ejected_until or endpoint.for_answers:
        if endpoint.for_answers or endpoint.ejected_until == 0:
            endpoint.failures = 0
        _eject(endpoint, now, for_answers=False)
        endpoint.memory.forget()
        endpoint.joined_at, endpoint.full, endpoint.well = None, False, False


def failed(endpoint: Endpoint, peers: Sequence[Endpoint], now: float, picking: Picking = _DEFAULT) -> bool:
    """Note a bad answer: a 5xx, or one that was cut short by an engine that lives.

    Args:
        endpoint: Who gave it.
        peers: All endpoints of its application, itself among them.
        now: Monotonic seconds.
        picking: How many in a row, and how large a part may be ejected.

    Returns:
        Whether that ejects it.
    """
    endpoint.bad_answers += 1
    endpoint.well = False
    if endpoint.ejected_until:
        if now < endpoint.ejected_until:
            return False  # asked before it was ejected, or because all were
        _eject(endpoint, now, for_answers=True)
        return True
    if endpoint.bad_answers < picking.failures_to_eject or not _may_eject(endpoint, peers, picking):
        return False
    if now - endpoint.was_out_until > FORGIVEN_AFTER_S:
        endpoint.failures = 0
    _eject(endpoint, now, for_answers=True)
    return True


def _may_eject(endpoint: Endpoint, peers: Sequence[Endpoint], picking: Picking) -> bool:
    """Whether it is an outlier at all (most of the others answer well), and not one too many."""
    others = [e for e in peers if e is not endpoint]
    inside = [e for e in others if e.ejected_until == 0 and not e.draining]
    well = sum(e.well for e in inside)
    out = len(others) - len(inside) + 1
    return well > 0 and 2 * well >= len(inside) and 100 * out <= picking.max_ejection_percent * (len(others) + 1)


def _eject(endpoint: Endpoint, now: float, *, for_answers: bool) -> None:
    endpoint.failures = min(endpoint.failures + 1, 16)
    endpoint.ejected_until = now + min(EJECTION_MOST_S, EJECTION_FIRST_S * 2.0 ** (endpoint.failures - 1))
    endpoint.for_answers = for_answers
    endpoint.probed_until = 0.0


def first_token_came(endpoint: Endpoint, after_s: float, peers: Sequence[Endpoint], now: float) -> None:
    """Note a time to first token. One far above the peers' makes an endpoint slow: it gets less, but is not ejected.

    Slow decoding needs no rule: work then ends later, so that less is sent there.
    """
    if endpoint.timed <= 0:
        endpoint.first_token_s = after_s
    else:
        endpoint.first_token_s += SMOOTHING * (after_s - endpoint.first_token_s)
    endpoint.timed += 1
    if endpoint.timed > 0 and endpoint.timed % JUDGED_AFTER == 0:
        others = [e.first_token_s for e in peers if e is not endpoint and e.timed >= JUDGED_AFTER]
        endpoint.slow = slowness(endpoint.first_token_s, others)
        endpoint.slow_until = now + SLOW_FOR_S
        endpoint.full = endpoint.full and endpoint.slow == 1


class EndpointBook:
    """All endpoints by application. Replacing the set keeps what is known of those that stay."""

    def __init__(self) -> None:
        self._by_application: dict[str, list[Endpoint]] = {}

    def replace(self, addresses: Mapping[str, Iterable[Address]]) -> bool:
        """Make the book hold exactly these. Returns whether anything changed; malformed URLs are left out."""
        book: dict[str, list[Endpoint]] = {}
        changed = False
        for application, wanted in addresses.items():
            known = {e.address: e for e in self._by_application.get(application, ())}
            entries = book[application] = []
            for address in dict.fromkeys(wanted):
                entry = known.get(address)
                if entry is None:
                    try:
                        entry = endpoint_of(application, address)
                    except ValueError:
                        continue
                    changed = True
                elif entry.draining != address.draining:
                    entry.draining = address.draining
                    changed = True
                entries.append(entry)
            changed = changed or len(entries) != len(known)
        changed = changed or book.keys() != self._by_application.keys()
        self._by_application = book
        return changed

    def of(self, application: str) -> Sequence[Endpoint]:
        """The endpoints of an application, none when it is unknown."""
        return self._by_application.get(application, ())

    def ready(self, application: str, now: float) -> bool:
        """Whether one of them takes requests now."""
        found = self._by_application.get(application, ())
        for endpoint in found:  # nearly always the first will do
            if endpoint.ejected_until == 0 and not endpoint.draining:
                return True
        return any(usable(e, now) for e in found) or any(e.for_answers and not e.draining for e in found)

    def ready_counts(self, now: float) -> dict[str, int]:
        """By application: how many take requests now."""
        return {a: len(taking(es, now)) for a, es in self._by_application.items()}
