"""The pure parts of the gateway: decision tables and small facts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo
from serving.admission import Availability, Pick, Reason, Rejection, choose, is_tester, route_of
from serving.endpoints import Address, EndpointBook, connect_failed, connected, dispatched, finished, pick
from serving.gateway.forwarding import client_headers, client_id, client_lines, engine_head, passed_on
from serving.gateway.latency import QUIET_S, Apart, exceeded
from serving.gateway.request_ids import RequestFacts, issue, read
from serving.gateway.sessions import Sessions, Visit, session_hash
from serving.gateway.traffic_state import TrafficState
from serving.gateway.transcript import Transcript
from serving.limits import PromptDeaths, retry_allowed, timeout_of
from serving.openai_protocol import Operation, Request, metered_body, parse_request, unpinned_body
from serving.outcomes import Signal
from serving.streaming import UsageFilter, is_error_event, read_body, read_stream, says_done, sse_payloads
from serving.traffic import Generation, ModelTraffic, RevisionTraffic, Role, Tester, TrafficTable


def revision(role: Role, weight: int, version: str) -> RevisionTraffic:
    digest = ("a" if role is Role.STABLE else "b") * 64
    return RevisionTraffic(digest=digest, version=version, role=role, weight=weight, application=role.value)


def route(weight: int | None, rollout: str | None = "r"):
    revisions = [revision(Role.STABLE, 100 - (weight or 0), "1.0.0")]
    if weight is not None:
        revisions.append(revision(Role.CANARY, weight, "1.1.0"))
    traffic = ModelTraffic(model="chat", salt="s" * 16, rollout=rollout, revisions=tuple(revisions))
    return route_of(traffic, Generation(1, 1))


def available(*ready: str, known: tuple[str, ...] = (), lease: bool = True) -> Availability:
    return Availability(lambda a: a in ready, lambda a: a in ready or a in known, lease)


BOTH = ("stable", "canary")


# (weight, ready, known, lease, version) -> role and evidence, or the reason of a rejection
CHOICES = {
    "no canary": (None, BOTH, (), True, None, (Role.STABLE, False)),
    "weight 0 is forced": (0, BOTH, (), True, None, (Role.STABLE, False)),
    "weight 100 is forced": (100, BOTH, (), True, None, (Role.CANARY, False)),
    "canary not ready": (50, ("stable",), (), True, None, (Role.STABLE, False)),
    "stable not ready": (50, ("canary",), (), True, None, (Role.CANARY, False)),
    "a canary at 0 never stands in": (0, ("canary",), (), True, None, Reason.MODEL_NOT_READY),
    "lease expired": (100, BOTH, (), False, None, (Role.STABLE, False)),
    "lease expired, stable away": (50, ("canary",), (), False, None, (Role.CANARY, False)),
    "canary away at 100": (100, ("stable",), (), True, None, (Role.STABLE, False)),
    "nothing ready, stable ejected": (50, (), ("stable",), True, None, (Role.STABLE, False)),
    "nothing at all": (50, (), (), True, None, Reason.MODEL_NOT_READY),
    "pinned": (0, BOTH, (), True, "1.1.0", (Role.CANARY, False)),
    "pinned, without lease": (50, BOTH, (), False, "1.1.0", (Role.CANARY, False)),
    "pinned, not there": (50, ("stable",), (), True, "1.1.0", Reason.MODEL_NOT_READY),
    "pinned, unknown": (50, BOTH, (), True, "7.0.0", Reason.MODEL_NOT_FOUND),
}  # fmt: skip


class TestChoose:
    @pytest.mark.parametrize(
        ("weight", "ready", "known", "lease", "version", "expected"), CHOICES.values(), ids=CHOICES
    )
    def test_table(self, weight, ready, known, lease, version, expected) -> None:
        result = choose(route(weight), version, "unit", available(*ready, known=known, lease=lease))
        if isinstance(expected, Reason):
            assert isinstance(result, Rejection)
            assert result.reason is expected
        else:
            assert isinstance(result, Pick)
            assert (result.revision.role, result.evidence) == expected

    @pytest.mark.parametrize(
        ("weight", "ready", "expected"),
        [(0, BOTH, Role.CANARY), (5, BOTH, Role.CANARY), (0, ("stable",), Role.STABLE), (50, ("canary",), Role.CANARY)],
    )
    def test_testers_go_to_the_canary_while_it_is_ready(self, weight, ready, expected) -> None:
        picked = choose(route(weight), None, "u", available(*ready, lease=False), tester=True)
        assert isinstance(picked, Pick)
        assert (picked.revision.role, picked.evidence, picked.counted) == (expected, False, False)

    def test_testers_are_told_by_a_header_or_a_key(self) -> None:
        traffic = route(5).traffic.model_copy(
            update={"testers": (Tester(header="X-Tester", value="jä"), Tester(key="abcdefghijkl"))}
        )
        rules = route_of(traffic, Generation(1, 1))
        assert is_tester(rules, {b"x-tester": "jä".encode()}, "")
        assert is_tester(rules, {}, "abcdefghijkl")
        assert not is_tester(rules, {b"x-tester": b"no", b"x-other": b"j\xe4"}, "other")
        assert not is_tester(rules, {b"x-tester": b"\xff"}, "")

    @pytest.mark.parametrize(
        ("weight", "ready", "version", "watched"),
        [
            (None, BOTH, None, True),
            (0, BOTH, None, True),
            (0, BOTH, "1.0.0", False),
            (50, ("stable",), None, False),
            (50, BOTH, None, False),
            (100, BOTH, None, False),
        ],
    )
    def test_watch_tells_of_requests_that_had_no_other_arm(self, weight, ready, version, watched) -> None:
        traffic = route(weight).traffic.model_copy(update={"watch": True})
        picked = choose(route_of(traffic, Generation(1, 1)), version, "u", available(*ready))
        assert isinstance(picked, Pick)
        assert (picked.watched, picked.evidence and picked.watched) == (watched, False)
        assert picked.weight == (100 if watched else weight or 0)

    def test_chance_carries_evidence_within_a_rollout_only(self) -> None:
        for rollout in ("r", None):
            picks = [choose(route(30, rollout), None, f"u{i}", available(*BOTH)) for i in range(3000)]
            share = sum(isinstance(p, Pick) and p.revision.role is Role.CANARY for p in picks) / 3000
            assert 0.27 < share < 0.33
            assert all(isinstance(p, Pick) and p.evidence is (rollout is not None) for p in picks)


class TestEndpoints:
    def book(self, *urls: str) -> EndpointBook:
        book = EndpointBook()
        assert book.replace({"a": [Address(u) for u in urls]})
        return book

    def test_least_outstanding_then_least_served(self) -> None:
        book = self.book("http://h:1", "http://h:2/x/")
        one, two = book.of("a")
        assert (two.host, two.port, two.prefix) == ("h", 2, "/x")
        order = []
        for _ in range(4):
            endpoint = pick(book.of("a"), 0.0)
            assert endpoint is not None
            assert dispatched(endpoint, 0.0)
            order.append(endpoint.port)
        assert order == [1, 2, 1, 2]
        finished(two)
        finished(two)
        assert pick(book.of("a"), 0.0) is two
        assert pick(book.of("a"), 0.0, {two.url}) is one
        assert pick(book.of("a"), 0.0, {one.url, two.url}) is None

    def test_ejection_doubles_and_half_open_lets_one_through(self) -> None:
        book = self.book("http://h:1")
        (e,) = book.of("a")
        now = 0.0
        for expected in (1, 2, 4, 8, 16, 30, 30):
            dispatched(e, now)
            connect_failed(e, now)
            finished(e)
            assert e.ejected_until - now == expected
            assert not book.ready("a", now + expected - 0.01)
            assert pick(book.of("a"), now) is e  # better than nothing
            now += expected
            assert book.ready("a", now)
        dispatched(e, now)
        assert not book.ready("a", now)  # one probe at a time
        connected(e)
        assert book.ready("a", now)

    def test_many_failures_at_once_are_one(self) -> None:
        (e,) = self.book("http://h:1").of("a")
        for _ in range(10):
            connect_failed(e, 0.0)
        assert e.ejected_until == 1.0

    def test_replacing_keeps_what_is_known(self) -> None:
        book = self.book("http://h:1", "http://h:2")
        one = book.of("a")[0]
        one.served = 5
        assert not book.replace({"a": [Address("http://h:1"), Address("http://h:2")]})
        assert book.replace({"a": [Address("http://h:1"), Address("ftp://no")]})
        assert book.of("a") == [one]
        assert book.replace({"a": [Address("http://h:1", boot="new")]})  # the same address, another process
        assert book.of("a")[0].served == 0


class TestLimits:
    def test_prompt_is_refused_after_two_deaths_but_one_death_counts_once(self) -> None:
        deaths = PromptDeaths(capacity=2, ttl_s=100)
        for _ in range(5):
            deaths.record(b"p", "e1", 0.0)  # five copies under way in one death
        assert not deaths.refused(b"p", 0.0)
        deaths.record(b"p", "e1", 50.0)
        assert deaths.refused(b"p", 51.0)
        assert not deaths.refused(b"p", 151.0)
        deaths.record(b"q", "e", 60.0)
        deaths.record(b"r", "e", 60.0)
        assert len(deaths) == 2
        assert not deaths.refused(b"p", 61.0)

    def test_retry_budget(self) -> None:
        assert [retry_allowed(50, n) for n in (4, 5)] == [True, False]

    @pytest.mark.parametrize(("given", "expected"), [(None, 600), (b"5", 5), (b"1e9", 600), (b"0.5", 0.5)])
    def test_timeout(self, given: bytes | None, expected: float) -> None:
        assert timeout_of(given, 600) == expected

    @pytest.mark.parametrize("given", [b"0", b"-1", b"nan", b"x"])
    def test_bad_timeout(self, given: bytes) -> None:
        assert isinstance(timeout_of(given, 600), Rejection)


class TestProtocol:
    def test_session_precedence_and_pin(self) -> None:
        body = {"model": "chat@1.1.0", "user": "u", "prompt_cache_key": "k", "stream": True, "messages": ["雪"]}
        request = parse_request(json.dumps(body).encode())
        assert isinstance(request, Request)
        assert (request.model, request.version, request.session, request.stream) == ("chat", "1.1.0", "k", True)
        assert json.loads(unpinned_body(request)) == {**body, "model": "chat"}

    @pytest.mark.parametrize("body", [b"", b"1", b"null", b'{"model": 3}', b'{"model": ""}', b"[" * 100_000])
    def test_bad_bodies(self, body: bytes) -> None:
        assert isinstance(parse_request(body), Rejection)

    def test_no_error_quotes_the_prompt(self) -> None:
        rejection = parse_request(b'{"model": 3, "messages": "secret-prompt"}')
        assert isinstance(rejection, Rejection)
        assert "secret" not in rejection.message

    def test_headers_cannot_be_smuggled(self) -> None:
        headers = [(b"x-a", b"1\r\nx-evil: 1"), (b"transfer-encoding", b"chunked"), (b"content-length", b"9"),
                   (b"connection", b"X-Drop, keep-alive"), (b"x-drop", b"1"), (b"x-keep", b"1")]  # fmt: skip
        head = engine_head(b"/v1/x", b"h:1", passed_on(headers), 3, b"id")
        assert head == (
            b"POST /v1/x HTTP/1.1\r\nhost: h:1\r\ncontent-length: 3\r\nx-request-id: id\r\nx-keep: 1\r\n\r\n"
        )
        engines = [
            (b"connection", b"close"),
            (b"x-b", b"1"),
            (b"server", b"u"),
            (b"location", b"http://10.0.0.7:9000/v1"),
        ]
        answer = client_headers(engines, [(b"x-own", b"1")])
        assert answer == [(b"x-b", b"1"), (b"x-own", b"1")]
        assert client_lines([(b"connection", b"close"), (b"x-b", b"1"), (b"x-c", b"2")]) == b"x-b: 1\r\nx-c: 2\r\n"
        with pytest.raises(ValueError, match="line break"):
            client_lines([(b"x-a", b"1\r\nx-evil: 1")])
        assert client_id({b"x-request-id": b"a" * 200}) is None
        assert client_id({b"x-request-id": b"a", b"x-client-request-id": b"b"}) == b"b"


class TestStreaming:
    def test_chat_stream_of_two_choices(self) -> None:
        def chunk(index: int, text: str | None, finish: str | None = None) -> bytes:
            choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
            return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\r\n\r\n"

        usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n'
        data = chunk(1, "你") + chunk(0, "a") + b": comment\n\ndata: {broken\n\n" + chunk(1, "好", "length")
        answer = read_stream(Operation.CHAT, data + chunk(0, None, "stop") + usage + b"data: [DONE]\n\n")
        assert answer.texts == ("a", "你好")
        assert answer.finish_reasons == ("stop", "length")
        assert (answer.input_tokens, answer.output_tokens, answer.ended, answer.length_stop) == (3, 4, True, True)

    def test_tool_call_is_content(self) -> None:
        body = {"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}]}
        assert read_body(Operation.CHAT, json.dumps(body).encode()).has_content
        empty = {"choices": [{"message": {"content": " "}, "finish_reason": "stop"}]}
        assert not read_body(Operation.CHAT, json.dumps(empty).encode()).has_content

    def test_responses(self) -> None:
        events = [
            {"type": "response.output_text.delta", "delta": "he", "output_index": 0},
            {"type": "response.output_text.delta", "delta": "y", "output_index": 0},
            {"type": "response.incomplete", "response": {
                "usage": {"input_tokens": 1, "output_tokens": 2},
                "incomplete_details": {"reason": "max_output_tokens"}}},
        ]  # fmt: skip
        data = b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)  # type: ignore[attr-defined]
        answer = read_stream(Operation.RESPONSES, data)
        assert (answer.texts, answer.ended, answer.length_stop, answer.output_tokens) == (("hey",), True, True, 2)
        assert says_done(Operation.RESPONSES, data)
        body = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}], "usage": {}}
        assert read_body(Operation.RESPONSES, json.dumps(body).encode()).texts == ("hi",)

    def test_completions_and_errors(self) -> None:
        data = b'data: {"choices": [{"index": 0, "text": "x"}]}\n\ndata: {"error": {"code": 500}}\n\n'
        answer = read_stream(Operation.COMPLETIONS, data)
        assert (answer.texts, answer.error_code, answer.ended) == (("x",), "500", False)
        assert is_error_event(b'data: {"error": 1}\n\n')
        assert not is_error_event(b'data: {"id": 1}\n\n')
        assert not says_done(Operation.CHAT, data)

    @pytest.mark.parametrize("space", [b" ", b""])
    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n", b""])
    def test_only_an_event_of_its_own_ends_a_stream(self, space: bytes, end: bytes) -> None:
        event = b'data: {"choices": [{"index": 0, "delta": {"content": "say data: [DONE]"}}]}' + (end or b"\n")
        mark = b"data:" + space + b"[DONE]" + end
        assert not says_done(Operation.CHAT, event)
        assert says_done(Operation.CHAT, event + mark)
        assert says_done(Operation.CHAT, mark)

    @pytest.mark.parametrize("behind", range(44, 60))
    def test_last_words_end_no_stream_wherever_its_tail_begins(self, behind: int) -> None:
        event = b'data: {"choices": [{"delta": {"content": "say data: [DONE]%b"}}]}\n\n' % (b"." * (behind - 7))
        assert not says_done(Operation.CHAT, event)

    def test_two_texts_in_one_event_are_both_read_each_time(self) -> None:
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}},{"index":1,"delta":{"content":"z"}}]}\n\n'
        assert read_stream(Operation.CHAT, b"".join(event % n for n in range(9))).texts == ("012345678", "z" * 9)

    @pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
    def test_a_streams_end_is_seen_however_it_is_cut(self, size: int) -> None:
        stream = b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n' * 3 + b"data: [DONE]\n\n"
        transcript = Transcript(event_stream=True)
        for at in range(0, len(stream), size):
            transcript.add(stream[at : at + size])
        assert stream.endswith(transcript.tail)
        assert says_done(Operation.CHAT, transcript.tail)
        assert transcript.text == stream

    @pytest.mark.parametrize(
        "data", [b"", b"data:", b"\n\n\n", b"data: 1\n\ndata: null\n\n", b"\xff\xfe", b"data: [1]"]
    )
    def test_garbage_is_tolerated(self, data: bytes) -> None:
        for operation in Operation:
            read_stream(operation, data)
            read_body(operation, data)

    @pytest.mark.parametrize("odd", [-1, True, 1.5, "x", [1], {"a": 1}, [[]]], ids=repr)
    def test_values_of_wrong_kinds_are_ignored(self, odd: object) -> None:
        """What raises while it is read would be missing from every metric, just when an engine is broken."""
        for body in ({"choices": odd}, {"output": odd}, {"output": [{"type": "message", "content": odd}]},
                     {"choices": [{"index": odd, "text": "x", "message": {"content": "x"}}]}):  # fmt: skip
            for operation in Operation:
                read_body(operation, json.dumps(body).encode())
                event = {"type": "response.output_text.delta", "delta": "x", "output_index": odd, **body}
                read_stream(operation, b"data: " + json.dumps(event).encode() + b"\n\n")

    @pytest.mark.parametrize("told", [-1, 2**31, 2**63, 2**64, True, 1.5, "7"], ids=repr)
    def test_number_of_tokens_that_cannot_be_is_no_number(self, told: object) -> None:
        """Believed, it would hold the key's limit up for years, or break the segment of the log that it is in."""
        body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": told}}  # fmt: skip
        answer = read_body(Operation.CHAT, json.dumps(body).encode())
        assert (answer.input_tokens, answer.output_tokens) == (7, None)

    @pytest.mark.parametrize("before", [b"", b"\n", b"x", b": comment\n\n"])
    def test_a_run_is_read_whatever_stands_before_it(self, before: bytes) -> None:
        events = [b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % n for n in range(5)]
        text = "1234" if before == b"x" else "01234"
        assert read_stream(Operation.CHAT, before + b"".join(events)).texts == (text,)

    def test_joined_data_lines(self) -> None:
        assert sse_payloads(b"id: 1\ndata: a\ndata: b\n\n") == [b"a\nb"]


class TestSmallThings:
    def test_request_ids(self) -> None:
        secret, nonce = b"k" * 32, b"n" * 9
        facts = RequestFacts("c", Generation(3, 17), "chat", "1.3.0")
        issued = issue(secret, nonce, facts)
        assert read(secret, issued) == facts
        assert len(issued) < 56
        assert b"chat" not in issued.encode()
        assert read(b"x" * 32, issued) is None
        for i in range(4, len(issued) - 1):
            assert read(secret, issued[:i] + ("A" if issued[i] != "A" else "B") + issued[i + 1 :]) is None
        for text in ("", "req_", "req_é", "req_AAAA", "chatcmpl-1"):
            assert read(secret, text) is None

    def test_sessions_count_and_notice_moves(self) -> None:
        sessions = Sessions(capacity=2)
        assert sessions.visit("m", "s", "r1", "a", by_chance=False) == Visit(1, False, False)
        assert sessions.visit("m", "s", "r1", "a", by_chance=True) == Visit(2, False, True)
        assert sessions.visit("m", "s", "r1", "b", by_chance=True) == Visit(3, True, False)
        assert sessions.visit("m", "s", "r2", "b", by_chance=True) == Visit(1, False, True)
        sessions.visit("m", "t", "r2", "b", by_chance=True)
        sessions.visit("m", "u", "r2", "b", by_chance=True)
        assert len(sessions) == 2
        assert session_hash("salt-1", "s") != session_hash("salt-2", "s")

    def test_margin_is_for_the_canary_only(self) -> None:
        c = (1.0, 2.0, 3.0, 4.0)
        assert exceeded(2.4, Role.STABLE, c, 1.25) == ("p50", "p80")
        assert exceeded(2.4, Role.CANARY, c, 1.25) == ("p50",)
        assert exceeded(9.9, Role.CANARY, None, 1.25) == ()

    def test_slow_units_are_told_apart_whichever_arm_they_are_of(self) -> None:
        apart = Apart()
        slow = Signal.SLOW_TOKENS
        assert apart.told("m", "r", slow, "p50", admitted_at=10.0, now=11.0)
        assert not apart.told("m", "r", slow, "p50", admitted_at=10.5, now=11.1)  # under way when the first one ended
        assert not apart.told("m", "r", slow, "p50", admitted_at=11.0 + QUIET_S / 2, now=12.0)
        assert apart.told("m", "r", Signal.SLOW_FIRST_TOKEN, "p50", admitted_at=10.5, now=11.1)
        assert apart.told("m", "r", slow, "p99", admitted_at=10.5, now=11.1)  # each level is a test of its own
        assert apart.told("m", "other", slow, "p50", admitted_at=10.5, now=11.1)
        assert apart.told("m", "r", slow, "p50", admitted_at=11.0 + QUIET_S, now=12.0)
        assert apart.told("m", "r", slow, "p50", admitted_at=5.0, now=5.5)  # the clock was set back
        apart.prune({("m", "other")})
        assert apart.told("m", "r", slow, "p50", admitted_at=5.1, now=5.6)

    def test_slowness_allowed_is_the_tables(self) -> None:
        c = (1.0, 2.0, 3.0, 4.0)
        assert exceeded(2.4, Role.CANARY, c, 1.0) == ("p50", "p80")
        assert exceeded(2.4, Role.CANARY, c, 3.0) == ()

    def test_lease_is_renewed_by_the_leader_only(self) -> None:
        state = TrafficState(lease_s=15)
        assert not state.lease_valid(0)
        state.apply(TrafficTable(fence=2, sequence=1, issued_at=0), 0)
        state.heard(0, fence=1)
        assert not state.lease_valid(0)
        state.heard(0, fence=2)
        assert state.lease_valid(15)
        assert not state.lease_valid(15.1)

    def test_series_of_retired_revisions_go(self) -> None:
        instruments = GatewayInstruments()
        info = [RevisionInfo("chat", "1.0.0", "a", "stable"), RevisionInfo("chat", "1.1.0", "b", "canary")]
        instruments.set_revisions(info)
        for version in ("1.0.0", "1.1.0"):
            instruments.record(RequestMeasurement("chat", version, "chat", RequestOutcome.OK, 0.1, 0.05, 0.01, 3, 4))
        instruments.set_revisions(info[:1])
        assert b"1.1.0" not in instruments.render("")[0]
        instruments.record(RequestMeasurement("chat", "1.1.0", "chat", RequestOutcome.OK, 0.1))  # a late one
        instruments.set_revisions(info[:1])
        text = instruments.render("")[0]
        assert b"1.1.0" not in text
        assert b'tidegate_requests_total{model="chat",outcome="ok",version="1.0.0"} 1.0' in text


class TestUsageOfStreams:
    """A stream whose client does not ask for its usage is asked for it all the same, and the client never sees that."""

    USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    TEXT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"say \\"usage\\""}}],"usage":null}\n\n'

    @pytest.mark.parametrize(
        ("options", "asked"),
        [
            (..., {"include_usage": True}),
            (None, {"include_usage": True}),
            ({"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
            ({"include_usage": True}, None),
            ("nonsense", None),
        ],
    )
    def test_only_what_is_missing_is_asked_for(self, options: object, asked: object) -> None:
        fields = {"model": "chat", "prompt": "a } b", "stream": True}
        if options is not ...:
            fields["stream_options"] = options
        body = json.dumps(fields).encode() + b" \n"
        metered = metered_body(body, fields)
        assert (None if metered is None else json.loads(metered)) == (
            None if asked is None else {**fields, "stream_options": asked}
        )

    @given(st.data())
    def test_nothing_but_the_usage_event_is_taken_out_however_the_stream_is_cut(self, data: st.DataObject) -> None:
        end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
        events = [
            e.replace(b"\n", end) for e in (self.TEXT, b": hello\n\n", self.TEXT, self.USAGE, b"data: [DONE]\n\n")
        ]
        stream = b"".join(events) + data.draw(st.sampled_from([b"", b"data: cut"]))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        found, usage = b"", UsageFilter()
        for begin, after in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            piece = stream[begin:after]
            found += piece if usage.passes(piece) else usage.feed(piece)
        assert found + usage.rest() == stream.replace(events[3], b"")
