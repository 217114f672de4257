"""The mailbox: bounded, fair, each frame once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_peer import frame

from live_sr.serve.mailbox import Client, Job, Mailbox

A: Client = ("a", 1)
B: Client = ("b", 2)
C: Client = ("c", 3)


def job(
    client: Client, seq: int, *, side: int = 10, dtype: type[np.uint8 | np.uint16] = np.uint8, model: str = ""
) -> Job:
    return Job(client, seq, frame(0, (side, side), dtype), arrived_ns=0, model=model)


def taken(mailbox: Mailbox, max_batch: int = 1) -> list[tuple[str, int]]:
    return [(j.client[0], j.seq) for j in mailbox.take(max_batch)]


def test_frames_of_one_client_leave_in_the_order_they_came() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    for seq in (5, 3, 9):
        assert mailbox.put(job(A, seq)) == "queued"
    assert [taken(mailbox)[0][1] for _ in range(3)] == [5, 3, 9]


def test_clients_take_turns_however_much_one_of_them_sends() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    for seq in range(4):
        mailbox.put(job(A, seq))
    for seq in range(2):
        mailbox.put(job(B, seq))
    mailbox.put(job(C, 0))
    order = "".join(taken(mailbox)[0][0] for _ in range(7))
    assert order == "abcabaa"


def test_a_batch_holds_frames_of_one_shape_and_dtype_from_several_clients() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    for j in (job(A, 0), job(A, 1, side=5), job(B, 0, dtype=np.uint16), job(C, 0), job(C, 1)):
        mailbox.put(j)
    assert taken(mailbox, 8) == [("a", 0), ("c", 0), ("c", 1)]
    assert taken(mailbox, 8) == [("b", 0)]
    assert taken(mailbox, 8) == [("a", 1)]


def test_a_batch_never_mixes_models() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    for j in (job(A, 0, model="x"), job(A, 1, model="y"), job(B, 0, model="y"), job(C, 0, model="x")):
        mailbox.put(j)
    assert taken(mailbox, 8) == [("a", 0), ("c", 0)]
    assert taken(mailbox, 8) == [("b", 0), ("a", 1)]


def test_a_batch_is_never_larger_than_asked() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    for seq in range(5):
        mailbox.put(job(A, seq))
    assert [len(mailbox.take(2)) for _ in range(3)] == [2, 2, 1]


def test_a_frame_is_queued_once_while_it_waits_and_while_it_is_computed() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=8)
    mailbox.put(job(A, 7))
    assert mailbox.put(job(A, 7)) == "already_held"
    (computing,) = mailbox.take(1)
    assert mailbox.put(job(A, 7)) == "already_held"
    assert mailbox.frames == 0
    mailbox.done(computing)
    assert mailbox.put(job(A, 7)) == "queued"


def test_a_client_holds_no_more_frames_than_its_credits_until_one_is_done() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=2)
    assert [mailbox.put(job(A, seq)) for seq in range(3)] == ["queued", "queued", "no_credit"]
    (computing,) = mailbox.take(1)
    assert mailbox.put(job(A, 2)) == "no_credit"
    assert mailbox.put(job(B, 0)) == "queued"
    mailbox.done(computing)
    assert mailbox.put(job(A, 2)) == "queued"


def test_memory_is_bounded_as_a_whole_and_shared_among_those_who_wait() -> None:
    mailbox = Mailbox(max_bytes=600, credits=9)
    assert [mailbox.put(job(A, seq)) for seq in range(3)] == ["queued"] * 3
    assert mailbox.put(job(B, 0)) == "queued"
    assert mailbox.put(job(A, 3)) == "full"  # its share is half now, and it has that
    assert [mailbox.put(job(B, seq)) for seq in (1, 2)] == ["queued"] * 2
    assert (mailbox.frames, mailbox.bytes) == (6, 600)
    assert mailbox.put(job(C, 0)) == "full"


def test_one_frame_may_exceed_a_share() -> None:
    mailbox = Mailbox(max_bytes=600, credits=9)
    mailbox.put(job(A, 0))
    assert mailbox.put(job(B, 0, side=20)) == "queued"
    assert mailbox.put(job(B, 1)) == "full"


def test_a_forgotten_client_leaves_nothing_behind() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=2)
    mailbox.put(job(A, 0))
    mailbox.put(job(A, 1))
    mailbox.put(job(B, 0))
    (computing,) = mailbox.take(1)
    assert mailbox.forget(A) == 1
    assert (mailbox.frames, mailbox.bytes) == (1, 100)
    mailbox.done(computing)
    assert [mailbox.put(job(A, seq)) for seq in (0, 1)] == ["queued", "queued"]


def test_take_waits_for_a_frame_and_returns_nothing_once_closed() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=2)
    got: list[list[tuple[str, int]]] = []
    first = threading.Event()

    def work() -> None:
        while batch := taken(mailbox):
            got.append(batch)
            first.set()

    thread = threading.Thread(target=work)
    thread.start()
    mailbox.put(job(A, 0))
    assert first.wait(10)
    mailbox.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got == [[("a", 0)]]
    assert mailbox.put(job(A, 1)) == "closed"


def test_closing_discards_what_waits() -> None:
    mailbox = Mailbox(max_bytes=10_000, credits=2)
    mailbox.put(job(A, 0))
    mailbox.close()
    assert mailbox.take(1) == []
    assert (mailbox.frames, mailbox.bytes) == (0, 0)


CALLS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([A, B, C]), st.integers(0, 5), st.sampled_from([5, 10, 15])),
    st.tuples(st.just("take"), st.integers(1, 3)),
    st.tuples(st.just("done")),
    st.tuples(st.just("forget"), st.sampled_from([A, B, C])),
)


@given(st.lists(CALLS, max_size=60))
def test_whatever_is_called_counts_and_bounds_hold(calls: list[tuple[object, ...]]) -> None:
    """Against a model that keeps plain lists."""
    mailbox = Mailbox(max_bytes=500, credits=3)
    waiting: list[Job] = []
    computing: list[Job] = []
    for name, *args in calls:
        if name == "put":
            client, seq, side = args
            assert isinstance(seq, int)
            assert isinstance(side, int)
            new = job(client, seq, side=side)  # type: ignore[arg-type]
            held = [j for j in waiting + computing if j.client == client]
            put = mailbox.put(new)
            assert (put == "already_held") == (seq in {j.seq for j in held})
            assert (put == "no_credit") == (len(held) >= 3 and put != "already_held")
            if put == "queued":
                waiting.append(new)
        elif name == "take" and waiting:
            (max_batch,) = args
            assert isinstance(max_batch, int)
            batch = mailbox.take(max_batch)
            assert 1 <= len(batch) <= max_batch
            assert len({j.pixels.shape for j in batch}) == 1
            for taken_job in batch:
                assert taken_job is next(j for j in waiting if j.client == taken_job.client)
                waiting.remove(taken_job)
            computing += batch
        elif name == "done" and computing:
            mailbox.done(computing.pop())
        elif name == "forget":
            (client,) = args
            assert mailbox.forget(client) == sum(j.client == client for j in waiting)  # type: ignore[arg-type]
            waiting = [j for j in waiting if j.client != client]
            computing = [j for j in computing if j.client != client]
        assert mailbox.frames == len(waiting)
        assert mailbox.bytes == sum(j.pixels.nbytes for j in waiting) <= 500


@pytest.mark.parametrize("max_batch", [1, 4])
def test_nobody_starves_behind_a_batch_of_another_shape(max_batch: int) -> None:
    mailbox = Mailbox(max_bytes=100_000, credits=100)
    for seq in range(20):
        mailbox.put(job(A, seq))
        mailbox.put(job(B, seq))
    mailbox.put(job(C, 0, side=3))
    calls = 0
    while ("c", 0) not in taken(mailbox, max_batch):
        calls += 1
    assert calls <= 2
