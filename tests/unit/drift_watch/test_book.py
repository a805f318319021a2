"""The drift watch without its sockets: what it takes in, saves, restores, tells, and never writes."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from monitoring.drift.daily import Daily
from monitoring.drift.errors import TooFewRequests
from monitoring.sequential.events import CappedMixture, EProcessConfig
from rollout.analysis.comparison import Kind, against
from rollout.analysis.comparison import Sighting as Judged
from serving.drift import library
from serving.drift.archive import ID_BYTES, Archive, read_rows, segment_path
from serving.drift.book import OUTPUT_DRIFT, SEMANTIC_ENTROPY, Book
from serving.drift.config import DriftConfig, InvalidDriftConfig
from serving.drift.erasing import WatchSlow, erase
from serving.drift.library import Rows
from serving.drift.streams import StreamName, UnknownStream, stream
from serving.gateway.request_ids import RequestFacts, issue
from serving.request_log.marks import mark_of
from serving.sightings import Sighting
from serving.traffic import Generation

DIMENSIONS = 32
SECRET = "plugh-xyzzy"
BASIS = np.random.default_rng(0).standard_normal((3, 8, DIMENSIONS))


@pytest.fixture(autouse=True)
def _fewer_bootstrapped_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.drift.mmd.STREAMS", 4)  # the kernel window's threshold is not what is tested here


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Texts `TOPIC NUMBER ...` of one topic lie in one subspace."""
    rows = []
    for text in texts:
        topic, number = text.split()[:2]
        rng = np.random.default_rng(int(number))
        row = BASIS[int(topic)].T @ (rng.standard_normal(8) + 1.0) + 0.3 * rng.standard_normal(DIMENSIONS)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32).reshape(-1, DIMENSIONS)


def seen(number: int, topic: int = 0, at: float = 1e9, **more: object) -> Sighting:
    return Sighting("chat", f"req_{number}", at, "default", "chat", f"{topic} {number:06d} {SECRET}", 20)._replace(
        **more
    )


def config(home: Path, **more: object) -> DriftConfig:
    return DriftConfig(home=home, embeddings_per_s=1e9, **more)


def book(home: Path, **more: object) -> Book:
    return Book(config(home, **more), embed, DIMENSIONS, np.random.default_rng(1))


SPEC = library.ReferenceSpec(components=8, clusters=8)


def rows(count: int, start: int = 0) -> Rows:
    return Rows.of_texts([f"0 {n:06d} {SECRET}" for n in range(start, start + count)], embed)


def build(home: Path, scope: str = "all", start: int = 100_000) -> str:
    built = library.build(
        stream("chat", scope), rows(1500, start), source="a test", daily=Daily.NEVER, window_s=None, now=0.0, spec=SPEC
    )
    library.put(config(home).places.references, built)
    return built.about.digest


def take(found: Book, sightings: Sequence[Sighting]) -> None:
    for start in range(0, len(sightings), 32):
        found.take(sightings[start : start + 32], 1.0 + start)


def test_a_change_raises_one_page_that_names_no_text_and_an_ack_ends_it(tmp_path: Path) -> None:
    build(tmp_path)
    one = book(tmp_path)
    one.follow()
    watched = one.streams[StreamName("chat")]
    take(one, [seen(n) for n in range(1000)])
    assert (watched.watch.seen, watched.watch.embedded, watched.paging) == (1000, 1000, False)
    take(one, [seen(n, topic=1) for n in range(5000, 5060)])
    pages = [a for a in watched.alarms if a["severity"] == "page"]
    assert len(pages) == 1
    assert watched.paging
    assert pages[0]["explanation"]["gained"][0]["label"].startswith("Latin letters")
    assert SECRET not in json.dumps(one.status(0.0))

    acknowledged = one.config.places.acknowledgements / "1.json"
    acknowledged.write_text(json.dumps({"model": "chat", "scope": None, "by": "me", "at": 5.0, "reason": "known"}))
    one.follow()
    assert not watched.paging
    assert pages[0]["acknowledged"] == {"by": "me", "at": 5.0, "reason": "known"}
    assert not acknowledged.exists()


def test_after_kill_9_it_goes_on_from_what_it_saved_and_an_alarm_is_never_lost(tmp_path: Path) -> None:
    build(tmp_path)
    one = book(tmp_path)
    one.follow()
    take(one, [seen(n) for n in range(300)])
    one.save()
    kept = one.status(0.0)["streams"][0]
    again = book(tmp_path)
    again.follow()
    found = again.status(0.0)["streams"][0]
    assert {k: v for k, v in found.items() if k != "detectors"} == {k: v for k, v in kept.items() if k != "detectors"}
    for name in ("embedding", "cheap_features"):
        assert found["detectors"][name] == kept["detectors"][name]
    take(again, [seen(n, topic=1) for n in range(5000, 5060)])
    assert again.streams[StreamName("chat")].paging  # and nothing more is saved
    third = book(tmp_path)
    third.follow()
    assert third.streams[StreamName("chat")].paging


def test_a_new_reference_starts_anew_and_a_damaged_one_or_state_stops_nothing(tmp_path: Path) -> None:
    first = build(tmp_path)
    one = book(tmp_path)
    one.follow()
    take(one, [seen(n) for n in range(100)])
    one.save()
    second = build(tmp_path, start=300_000)
    assert first != second
    one.follow()
    assert one.streams[StreamName("chat")].about.digest == second
    assert one.streams[StreamName("chat")].watch.seen == 0
    state = one.config.places.states / "chat" / "all.json"
    state.write_text("{ torn")
    again = book(tmp_path)
    again.follow()
    assert again.streams[StreamName("chat")].watch.seen == 0
    (one.config.places.references / "chat" / "all" / second / "embedding.npz").write_bytes(b"torn")
    broken = book(tmp_path)
    broken.follow()
    assert broken.streams == {}
    take(broken, [seen(1)])


def test_a_tenants_stream_sees_its_own_requests_only(tmp_path: Path) -> None:
    build(tmp_path)
    build(tmp_path, "tenant=acme")
    one = book(tmp_path)
    one.follow()
    take(one, [seen(n, tenant="acme" if n % 4 == 0 else "other") for n in range(100)])
    counts = {name.scope: watched.watch.seen for name, watched in one.streams.items()}
    assert counts == {"all": 100, "tenant=acme": 25}


def test_what_cant_be_embedded_in_time_is_seen_by_its_cheap_features_alone(tmp_path: Path) -> None:
    build(tmp_path)
    one = Book(DriftConfig(home=tmp_path, embeddings_per_s=10), embed, DIMENSIONS, np.random.default_rng(1))
    one.follow()
    for n in range(500):
        one.take([seen(n)], n / 100.0)
    watch = one.streams[StreamName("chat")].watch
    assert watch.seen == 500
    assert 30 <= watch.embedded <= 70


def test_the_archive_keeps_an_even_draw_of_an_hour_and_forgets_old_days(tmp_path: Path) -> None:
    archive = Archive(tmp_path, DIMENSIONS, rows_per_hour=100, days=2, rng=np.random.default_rng(2))
    cheap, vector = np.zeros(13, np.float32), np.ones(DIMENSIONS, np.float32)
    for n in range(1000):
        archive.add(seen(n, at=7200.0 + n), cheap, vector)
    archive.add(seen(1000, at=7200.0 + 3600, tenant="acme"), cheap, vector)
    archive.close()
    found = read_rows(tmp_path, StreamName("chat"), 0, 1e6, DIMENSIONS)
    assert len(found) == 101
    assert 350 < found["at"][:100].mean() - 7200 < 650  # not the first hundred, nor the last
    assert len(read_rows(tmp_path, stream("chat", "tenant=acme"), 0, 1e6, DIMENSIONS)) == 1
    with segment_path(tmp_path, "chat", 2).open("ab") as torn:
        torn.write(b"half a row")
    assert len(read_rows(tmp_path, StreamName("chat"), 0, 1e6, DIMENSIONS)) == 101
    assert archive.prune(3600.0 * (24 * 2 + 3)) == 1
    assert archive.prune(3600.0 * 100) == 1


FACTS = RequestFacts("c", Generation(99_999_999, 9_999_999_999), "m" * 63, "1.0.0-" + "r" * 58, "s" * 12)
LONGEST_ID = issue(b"s" * 32, b"n" * 9, FACTS)


def kept_ids(home: Path) -> list[str]:
    found = read_rows(config(home).places.archive, StreamName("chat"), 0, 2e9, DIMENSIONS)
    return [row.decode() for row in found["id"]]


def test_an_hour_whose_file_cannot_be_had_is_told_once_and_closes_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = book(tmp_path)
    watch.take([seen(0)], 0.0)
    closed: list[int] = []
    close = os.close

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("serving.drift.archive.os.open", full)
        broken.setattr("serving.drift.archive.os.close", lambda number: (closed.append(number), close(number)))
        watch.take([seen(n, at=1e9 + 3600) for n in range(1, 4)], 1.0)
    assert len(closed) == 1, "by the second time the number may be another file's, or a socket's"
    assert [r.getMessage() for r in caplog.records] == ["vectors can't be kept: No space left on device"]
    watch.take([seen(4, at=1e9 + 3600)], 2.0)
    kept = read_rows(watch.config.places.archive, stream("chat", "all"), 0, 2e9, DIMENSIONS)
    assert [row["id"] for row in kept] == [b"req_0", b"req_4"]


@pytest.mark.parametrize("running", [True, False])
def test_a_user_is_erased_from_the_archive_whether_a_watch_runs_or_not(tmp_path: Path, running: bool) -> None:
    one = book(tmp_path)
    one.hold()
    jane, joe = mark_of(b"secret", "jane"), mark_of(b"secret", "joe")
    assert len(LONGEST_ID) <= ID_BYTES
    take(
        one, [seen(1, user=jane, request_id=LONGEST_ID), seen(2, user=joe), seen(3, user=jane, at=1e9 + 7200), seen(4)]
    )
    assert kept_ids(tmp_path) == [LONGEST_ID, "req_2", "req_4", "req_3"]
    places = config(tmp_path).places
    if running:
        with pytest.raises(WatchSlow, match="has not taken the vectors out"):
            erase(places, DIMENSIONS, jane, 1e9 + 60, wait_s=0.0)
        one.follow()
    else:
        one.close()
    assert erase(places, DIMENSIONS, jane, 1e9 + 60) == (0 if running else 1)
    assert kept_ids(tmp_path) == ["req_2", "req_4", "req_3"], "what came later stays, and so do others"
    everything = b"".join(p.read_bytes() for p in places.archive.rglob("*.vectors"))
    assert LONGEST_ID.encode() not in everything
    if running:  # what was under way then is not kept; what comes in the same hour goes behind the rows that stay
        take(one, [seen(5, user=jane, at=1e9 + 59), seen(6, user=jane, at=1e9 + 61)])
        assert sorted(kept_ids(tmp_path)) == ["req_2", "req_3", "req_4", "req_6"]
        one.prune(1e9 + 90_000)
        assert list(places.erased.iterdir()) == []


def test_rows_of_a_former_format_which_name_no_user_are_deleted(tmp_path: Path) -> None:
    one = book(tmp_path)
    former = config(tmp_path).places.archive / "chat" / "20260301T00.rows"
    former.parent.mkdir()
    former.write_bytes(b"x" * 100)
    (former.parent / ".writing-x").write_bytes(b"half")
    one.hold()
    assert list(former.parent.iterdir()) == []


def test_a_reference_says_what_it_lacks_and_a_stream_what_it_may_be_called() -> None:
    with pytest.raises(TooFewRequests, match="at least 1024 are needed"):
        library.build(StreamName("chat"), rows(10), source="x", daily=Daily.AUTO, window_s=1.0, now=0.0)
    for wrong in ("", "tenant=", "user=me", "../x"):
        with pytest.raises(UnknownStream, match="tenant=NAMESPACE"):
            stream("chat", wrong)
    assert StreamName.of_path(*stream("chat", "tenant=a/b ../c").path.split("/")) == stream("chat", "tenant=a/b ../c")
    with pytest.raises(InvalidDriftConfig, match="too long for a socket"):
        DriftConfig.from_json(DriftConfig(home=Path("/" + "x" * 100)).to_json())
    with pytest.raises(InvalidDriftConfig, match="rates are at least 0"):
        DriftConfig(home=Path("/x"), embeddings_per_s=-1)
    with pytest.raises(InvalidDriftConfig, match="--config: colour"):
        DriftConfig.from_json('{"home": "/x", "colour": "red"}')


# Scores of answers


def answered(number: int, topic: int, *, canary: bool, weight: int) -> Sighting:
    text = f"{topic} {900_000 - number:06d} answer"
    return seen(number, answer=text, rollout="r1", canary=canary, weight_percent=weight, token=number + 1)


def evidence(tmp_path: Path, topic_of_canary: int, seed: int, count: int) -> tuple[float, int]:
    """ln W of the controller's own test after so many requests, at most, and how many it took."""
    one, chance = book(tmp_path, archive_rows_per_hour=0), random.Random(seed)
    test = against(Kind.SCORE, EProcessConfig(alpha=0.01))
    ranks: list[float] = []
    for number in range(count):
        canary = chance.random() < 0.2
        topic = topic_of_canary if canary else 0
        for reply in one.take([answered(number + seed * 1_000, topic, canary=canary, weight=20)], float(number)):
            assert reply.scored.name == OUTPUT_DRIFT
            rank = sum(r < reply.scored.score for r in ranks) / max(len(ranks), 1)
            ranks.append(reply.scored.score)
            test.update(Judged(on_canary=canary, weight=0.2, rank=rank))
        if test.crossed:
            return test.log_e, number + 1
    return test.log_e, count


def test_answers_that_differ_are_found_by_the_rollouts_own_test_and_like_ones_are_not(tmp_path: Path) -> None:
    log_e, took = evidence(tmp_path / "a", 1, 1, 600)
    assert log_e >= CappedMixture(EProcessConfig(alpha=0.01)).config.log_threshold - 1e-6
    assert took < 500
    assert all(evidence(tmp_path / "b", 0, seed, 300)[0] < 2.0 for seed in range(2, 5))


def test_samples_of_one_request_give_its_semantic_entropy(tmp_path: Path) -> None:
    one = book(tmp_path)

    def scored(*samples: str) -> float:
        asked = answered(7, 0, canary=False, weight=20)._replace(samples=samples)
        (reply,) = one.take([asked], 1.0)
        assert reply.scored.name == SEMANTIC_ENTROPY
        return reply.scored.score

    same = f"0 {900_000 - 7} again"
    assert scored(same, same, same) == 0.0
    assert scored("1 1 x", "2 2 x", "0 3 x") > 0.5
    assert scored(same, same, "1 1 x") == pytest.approx(0.406, abs=0.01)


def test_a_sighting_takes_less_than_the_promised_time_beside_its_embedding(tmp_path: Path) -> None:
    """A gross bound, for a machine that others use too; the figure is in `python -m benchmarks.drift_detection`."""
    build(tmp_path)
    one = book(tmp_path)
    one.follow()
    watched = one.streams[StreamName("chat")].watch
    vectors = embed([f"0 {n} x" for n in range(300)])
    from monitoring.drift.features import cheap_features

    cheap = cheap_features("0 1 x")
    started = time.thread_time()
    for n, vector in enumerate(vectors):
        watched.observe(f"req_{n}", cheap, vector)
    assert (time.thread_time() - started) / 300 < 1e-3
