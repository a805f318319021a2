from __future__ import annotations

import io

import numpy as np
import pytest

from monitoring.drift.errors import DamagedReference, TooFewRequests, UnusableVectors
from monitoring.drift.reference import ReferenceSpec, build_reference, load_reference, save_reference
from tests.unit.monitoring_drift.streams import DIMENSIONS, SPEC, cheap_reference, cloud, ids, reference


def stored(of) -> io.BytesIO:
    file = io.BytesIO()
    save_reference(of, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("of", [reference(), cheap_reference()], ids=["embedding", "named"])
def test_a_saved_reference_comes_back_the_same(of) -> None:
    found = load_reference(stored(of))
    assert found.digest == of.digest
    assert (found.names, found.source, found.example_ids, found.rows) == (of.names, of.source, of.example_ids, of.rows)
    vector = np.arange(of.dimensions, dtype=np.float32) / 7
    assert np.array_equal(found.locate(vector)[0], of.locate(vector)[0])


def test_the_same_rows_and_seed_give_the_same_digest_and_other_rows_another() -> None:
    assert reference(seed=3).digest == reference(seed=3).digest != reference(seed=4).digest


def test_the_source_belongs_to_the_digest() -> None:
    one, other = (
        build_reference(cloud(1200, 1), ids(1200), source=source, rng=np.random.default_rng(1), spec=SPEC)
        for source in ("March", "April")
    )
    assert one.digest != other.digest


def test_its_arrays_can_not_be_changed() -> None:
    for of in (reference(), load_reference(stored(reference()))):
        with pytest.raises(ValueError, match="read-only"):
            of.blocks[0].calibration[0, 0] = 1.0


def test_no_row_is_both_fitted_and_calibrated() -> None:
    given, fit, calibration = reference(rows=3000).rows
    assert fit + calibration <= given
    assert calibration == 1500


def test_the_examples_are_ids_of_the_rows_given() -> None:
    examples = [name for cluster in reference().example_ids for name in cluster]
    assert len(examples) == len(set(examples)) == SPEC.clusters * SPEC.examples
    assert set(examples) <= set(ids(3000))


def test_an_embedding_s_reference_is_under_a_megabyte() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9000, 512)).astype(np.float32)
    assert build_reference(table, ids(9000), source="a window", rng=rng).nbytes < 1_000_000


@pytest.mark.parametrize(
    ("rows", "columns", "names", "spec", "error", "says"),
    [
        (999, DIMENSIONS, (), SPEC, TooFewRequests, "999 requests.*at least 1000.*longer window"),
        (1000, DIMENSIONS, (), ReferenceSpec(), TooFewRequests, "at least 1024"),
        (1200, 3, ("a", "b"), SPEC, UnusableVectors, "2 names for 3 features"),
    ],
    ids=["too few", "too few for its axes", "a name is missing"],
)
def test_what_can_not_be_built_says_why(rows, columns, names, spec, error, says) -> None:
    table = np.ones((rows, columns), dtype=np.float32)
    with pytest.raises(error, match=says):
        build_reference(table, ids(rows), source="x", rng=np.random.default_rng(0), spec=spec, names=names)


def test_each_part_of_the_day_needs_its_rows() -> None:
    hours = np.array([3] * 500 + [15] * 1500)
    with pytest.raises(TooFewRequests, match=r"500 requests in block 1 of 2.*at least 1000"):
        build_reference(
            cloud(2000, 1), ids(2000), source="x", rng=np.random.default_rng(0), spec=SPEC, hours=hours, blocks=2
        )


def test_rows_that_are_not_finite_are_refused() -> None:
    table = cloud(1200, 1)
    table[5, 3] = np.nan
    with pytest.raises(UnusableVectors, match="1 rows are not finite"):
        build_reference(table, ids(1200), source="x", rng=np.random.default_rng(0), spec=SPEC)


@pytest.mark.parametrize("blocks", [0, 5, 48])
def test_a_day_is_divided_evenly(blocks: int) -> None:
    with pytest.raises(ValueError, match="divisor of 24"):
        build_reference(cloud(1200, 1), ids(1200), source="x", rng=np.random.default_rng(0), spec=SPEC, blocks=blocks)


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(768, dtype=np.float32), "another embedding model"),
        (np.full(DIMENSIONS, np.nan, dtype=np.float32), "not finite"),
        (np.full(DIMENSIONS, np.inf, dtype=np.float32), "not finite"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector, says) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(UnusableVectors, match=says):
        reference().locate(vector)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 half of one"])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedReference, match="build it again"):
        load_reference(io.BytesIO(content))


def test_a_changed_source_is_noticed() -> None:
    of = reference()
    with np.load(stored(of)) as archive:
        arrays = dict(archive)
    arrays["about"] = np.frombuffer(arrays["about"].tobytes().replace(b"a window", b"A window"), dtype=np.uint8)
    changed = io.BytesIO()
    np.savez(changed, **arrays)
    changed.seek(0)
    with pytest.raises(DamagedReference, match="was changed"):
        load_reference(changed)
