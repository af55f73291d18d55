"""The log of a run: what is written comes back, damage is seen, workers join."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import _record, replay
from zojax.estimators import Scalars

KEY = jax.random.key(5)
PARAMS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": None}


def scalars(step: int, probes: int = 2, value: float = 0.5) -> Scalars:
    vector = np.arange(probes, dtype=np.float32)
    return Scalars(vector + step, np.float32(value), np.float32(1e-3), vector + 1)


def header(**changes) -> replay.Header:
    made = replay.make_header(KEY, PARAMS, scalars(0), estimator="spsa", noise_format=1)
    return made._replace(**changes)


def write(path, records, **changes) -> list[int]:
    """Writes a log; the sizes of the file after the header and after each record."""
    writer = replay.LogWriter(path, header(**changes))
    sizes = [path.stat().st_size]
    for step, entry in records:
        writer.append(step, entry)
        # Handed to the operating system, not to a buffer of the process.
        sizes.append(path.stat().st_size)
    writer.close()
    return sizes


def test_what_is_written_comes_back(tmp_path):
    records = [(1, scalars(1)), (2, scalars(2, probes=5)), (7, scalars(7, value=np.nan))]
    sizes = write(tmp_path / "log", records)
    log = replay.read(tmp_path / "log")
    assert log.header == header()
    assert (log.steps, log.torn_bytes) == ((1, 2, 7), 0)
    for values, (_, entry) in zip(log.values, records, strict=True):
        back = replay.unflatten(values, scalars(0))
        assert isinstance(back, Scalars)
        for one, other in zip(back, entry, strict=True):
            np.testing.assert_array_equal(one, other)
    # step, count, floats, checksum
    assert sizes[1] - sizes[0] == 4 + 2 + 4 * (2 + 2 * 2) + 4


def test_a_log_is_continued(tmp_path):
    write(tmp_path / "log", [(1, scalars(1))])
    write(tmp_path / "log", [(2, scalars(2))])
    assert replay.read(tmp_path / "log").steps == (1, 2)


def test_steps_must_increase(tmp_path):
    path = tmp_path / "log"
    sizes = write(path, [(1, scalars(1)), (2, scalars(2))])
    with pytest.raises(ValueError, match="step 2 after step 2"):
        replay.LogWriter(path, header()).append(2, scalars(2))
    with path.open("ab") as file:
        file.write(_record.encode_record(2, replay.flatten(scalars(2))))
    with pytest.raises(ValueError, match=f"step 2 at byte {sizes[-1]} comes after step 2"):
        replay.read(path)


def test_a_torn_tail_is_left_out_wherever_it_tears(tmp_path):
    path = tmp_path / "log"
    sizes = write(path, [(1, scalars(1)), (2, scalars(2)), (3, scalars(3))])
    whole = path.read_bytes()
    for size in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:size])
        log = replay.read(path)
        assert (log.steps, log.torn_bytes) == ((1, 2), size - sizes[-2])
        # Continued, the torn bytes are gone and the log is the one that was never torn.
        write(path, [(3, scalars(3))])
        assert path.read_bytes() == whole


def test_a_damaged_last_record_is_left_out_whichever_byte_is_damaged(tmp_path):
    path = tmp_path / "log"
    sizes = write(path, [(1, scalars(1)), (2, scalars(2))])
    whole = path.read_bytes()
    for offset in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        log = replay.read(path)
        assert (log.steps, log.torn_bytes) == ((1,), sizes[-1] - sizes[-2])


def test_damage_before_sound_records_is_an_error(tmp_path):
    path = tmp_path / "log"
    sizes = write(path, [(1, scalars(1)), (2, scalars(2)), (3, scalars(3))])
    whole = path.read_bytes()
    for offset in range(sizes[1], sizes[2]):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        with pytest.raises(ValueError, match=f"damaged record at byte {sizes[1]}; .* {sizes[2]}"):
            replay.read(path)


def test_a_damaged_header_is_an_error(tmp_path):
    path = tmp_path / "log"
    (size,) = write(path, [])
    whole = path.read_bytes()
    for offset in (0, 8, 20, size - 1):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        with pytest.raises(ValueError, match=r"not a log|log format|header is damaged"):
            replay.read(path)
    path.write_bytes(whole[:5])
    with pytest.raises(ValueError, match="not a log"):
        replay.read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", (0, 6)),
        ("base_digest", "00"),
        ("estimator", "forward"),
        ("noise_format", 2),
        ("worker", 1),
        ("workers", 2),
    ],
)
def test_the_log_of_another_run_is_refused(tmp_path, field, value):
    write(tmp_path / "log", [(1, scalars(1))])
    before = (tmp_path / "log").read_bytes()
    with pytest.raises(ValueError, match=f"another run: {field}"):
        replay.LogWriter(tmp_path / "log", header(**{field: value}))
    assert (tmp_path / "log").read_bytes() == before


def test_another_machine_may_continue(tmp_path):
    write(tmp_path / "log", [(1, scalars(1))])
    write(tmp_path / "log", [(2, scalars(2))], jaxlib="99.0", device="abacus")
    assert replay.read(tmp_path / "log").header.device == jax.devices()[0].device_kind


def test_scalars_must_be_float32():
    with pytest.raises(ValueError, match="value is float16"):
        replay.flatten({"value": np.float16(1)})
    with pytest.raises(ValueError, match="projected is float32\\[2, 2\\]"):
        replay.flatten({"projected": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match="5 floats does not fit 2 scalars and 2 vectors"):
        replay.unflatten(np.zeros(5, np.float32), scalars(0))


def test_the_digest_sees_everything():
    tree = {"a": np.arange(6, dtype=np.float32), "k": jax.random.key(1), "n": None}
    others = [
        tree | {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        tree | {"a": np.arange(6, dtype=np.int32)},
        tree | {"a": np.nextafter(tree["a"], np.float32(9))},
        tree | {"a": np.where(tree["a"] == 0, np.float32(-0.0), tree["a"])},
        tree | {"k": jax.random.key(2)},
        {"b": tree["a"], "k": tree["k"], "n": None},
    ]
    digests = [replay.digest(tree), *map(replay.digest, others)]
    assert len(set(digests)) == len(digests)
    assert replay.digest(tree) == replay.digest(jax.tree.map(jnp.asarray, tree))
    assert replay.digest({"a": jnp.ones(3, jnp.bfloat16)}) != replay.digest({"a": jnp.ones(3, jnp.float16)})


def worker_log(worker: int, workers: int, steps=(1, 2), **changes) -> replay.Log:
    records = tuple(replay.flatten(scalars(10 * worker + step, value=worker)) for step in steps)
    return replay.Log(header(worker=worker, workers=workers, **changes), steps, records)


def test_workers_join_in_their_order():
    joined = replay.merge([worker_log(i, 3) for i in (2, 0, 1)])
    assert (joined.header, joined.steps) == (header(), (1, 2))
    entry = replay.unflatten(joined.values[1], scalars(0))
    np.testing.assert_array_equal(entry.projected, [2, 3, 12, 13, 22, 23])
    np.testing.assert_array_equal(entry.norm, [1, 2] * 3)
    assert (entry.value, entry.eps) == (1, np.float32(1e-3))


def test_one_worker_joins_to_itself():
    log = worker_log(0, 1)
    assert replay.merge([log]).values[0].tolist() == log.values[0].tolist()


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ([], r"workers \[\] are given"),
        ([worker_log(0, 2)], r"workers \[0\] are given; needed are 0 to 1"),
        ([worker_log(0, 2), worker_log(0, 2)], r"workers \[0, 0\] are given"),
        ([worker_log(0, 2), worker_log(1, 3)], "another run: workers"),
        ([worker_log(0, 2), worker_log(1, 2, base_digest="00")], "worker 1: .* base_digest"),
        ([worker_log(0, 2), worker_log(1, 2, key=(1, 2))], "worker 1: .* key"),
        ([worker_log(0, 2), worker_log(1, 2, steps=(1, 3))], r"workers 0 and 1 differ in the steps \[2, 3\]"),
    ],
)
def test_workers_that_do_not_fit_are_refused(logs, message):
    with pytest.raises(ValueError, match=message):
        replay.merge(logs)


def test_workers_must_agree_on_eps():
    odd = worker_log(1, 2)
    values = replay.flatten(scalars(1)._replace(eps=np.float32(2e-3)))
    with pytest.raises(ValueError, match="step 1: eps differs"):
        replay.merge([worker_log(0, 2), odd._replace(values=(values, odd.values[1]))])


def test_replay_wants_every_step():
    log = worker_log(0, 1, steps=(1, 2, 4))

    def apply(params, state, entry):
        return [*params, float(entry.projected[0])], state

    assert replay.replay(apply, [], None, log, like=scalars(0), stop=2) == ([1.0, 2.0], None)
    assert replay.replay(apply, [], None, log, like=scalars(0), start=1, stop=2) == ([2.0], None)
    for start, stop in ((0, None), (0, 3), (0, 4), (4, 5)):
        with pytest.raises(ValueError, match="the log holds 1 to 4, 3 in all"):
            replay.replay(apply, [], None, log, like=scalars(0), start=start, stop=stop)
    with pytest.raises(ValueError, match="one of 2 workers"):
        replay.replay(apply, [], None, worker_log(0, 2), like=scalars(0))
