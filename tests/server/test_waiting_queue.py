"""Turns of clients and requests, what a stream says while it waits, names of clients and runs."""

import os
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.addresses import client_address
from minigpt_jax.server.command import models_by_name
from minigpt_jax.server.request import ActiveRequest, Request
from minigpt_jax.server.waiting_comments import WaitingComments
from minigpt_jax.server.waiting_queue import WaitingQueue
from minigpt_jax.text_stream import TextStream
from minigpt_jax.tokenizer import load_tokenizer
from tests.server.serving import TINY

MANY_SLOTS = 64


def answers(names: str) -> list[ActiveRequest]:
    """One for each word CLIENT + NUMBER, such as a1: of that client, and of that HTTP request."""
    request = Request([1], sampling_params(1, TINY), max_tokens=1)
    text = TextStream(load_tokenizer())
    return [ActiveRequest(request, print, text, name[0], name) for name in names.split()]


def names(order: list[ActiveRequest]) -> str:
    return " ".join(str(answer.http_request) for answer in order)


def queue_of(waiting: str, num_slots: int) -> WaitingQueue:
    queue = WaitingQueue(num_slots)
    queue.add(answers(waiting))
    return queue


def taken(queue: WaitingQueue, running: list[ActiveRequest]) -> str:
    """What enters now."""
    running = list(running)
    first = len(running)
    while entering := queue.take(running):
        running.append(entering)
    return names(running[first:])


ORDERS = [
    # Among equals, first come, first served.
    ("a1 b1 c1", "", "a1 b1 c1"),
    # Between the requests of a client, and between clients.
    ("a1 a1 a1 a2", "", "a1 a2 a1 a1"),
    ("a1 a1 a2 a3 b1", "", "a1 b1 a2 a3 a1"),
    ("a1 a2 a3 a4 b1", "", "a1 b1 a2 a3 a4"),
    # What is in the slots counts.
    ("a1 a1 a2", "a1 a1", "a2 a1 a1"),
    ("a1 a2 b1 b1", "a1 a3 b2", "b1 a2 b1 a1"),
]


@pytest.mark.parametrize(("waiting", "running", "expected"), ORDERS)
def test_clients_and_their_requests_take_turns(waiting, running, expected):
    assert taken(queue_of(waiting, MANY_SLOTS), answers(running)) == expected


@pytest.mark.parametrize(("waiting", "running", "expected"), ORDERS)
def test_the_numbers_that_clients_are_told_are_the_order(waiting, running, expected):
    # A slot for each running answer, so that all others wait.
    queue = queue_of(waiting, len(answers(running)) or 1)
    occupied = answers(running or "z1")
    numbers = queue.positions(occupied)
    assert names(sorted(numbers, key=numbers.__getitem__)) == expected
    assert sorted(numbers.values()) == list(range(len(numbers)))


def test_who_has_had_its_turn_is_behind_those_who_have_not():
    """Also when its answer has ended and it has no slot any more, as at the start."""
    queue = queue_of("a1 a2 b1 c1", 1)
    order = [queue.take([]) for _ in range(4)]
    assert names([answer for answer in order if answer]) == "a1 b1 c1 a2"


def test_an_answer_for_which_a_slot_is_free_does_not_wait():
    queue = queue_of("a1 b1 c1", 3)
    occupied = answers("z1 z2")
    numbers = queue.positions(occupied)
    assert {answer.client: number for answer, number in numbers.items()} == {"b": 0, "c": 1}
    # Asking takes nothing out of the queue, and what changes is seen.
    assert len(queue) == 3
    queue.add(answers("d1"))
    assert len(queue.positions(occupied)) == 3
    assert list(queue.positions([]).values()) == [0]


def test_one_slot_in_eight_is_kept_for_other_clients():
    running = answers("a1 " * 7)
    assert taken(queue_of("a1 a1", 8), running) == ""
    # Nor does another request of the same client get it.
    assert taken(queue_of("a1 a2 a3", 8), running) == ""
    assert taken(queue_of("a1 b1 b2", 8), running) == "b1"
    # Nor do many requests of one.
    singles = answers("a1 a2 a3 a4 a5 a6 a7")
    assert taken(queue_of("a8 a9", 8), singles) == ""
    assert taken(queue_of("a8 a9 b1", 8), singles) == "b1"
    assert taken(queue_of("a1 " * 100, 64), []) == " ".join(["a1"] * 56)
    # What fits as a whole gets all slots; so does everything where slots are few.
    assert taken(queue_of("a1 " * 8, 8), []) == " ".join(["a1"] * 8)
    assert taken(queue_of("a1 " * 9, 4), []) == " ".join(["a1"] * 4)


def test_cancelled_answers_leave_the_queue():
    queue = WaitingQueue(1)
    first, second = answers("a1 b1")
    queue.add([first, second])
    first.finished = True
    queue.remove_finished()
    assert len(queue) == 1 and queue.take([]) is second
    assert queue.take([]) is None


def said(*moments: tuple[float, int | None]) -> list[bytes | None]:
    """What a stream says that begins at 0 and asks at each (time, number before)."""
    comments = WaitingComments(0.0)
    return [comments.next(now, number) for now, number in moments]


def waiting(number: int) -> bytes:
    return f": waiting, {number} before you\n\n".encode()


def test_a_stream_that_waits_says_so_at_once_and_when_the_number_changes():
    assert said((0, 0)) == [waiting(0)]
    expected = [waiting(5), None, None, waiting(3), None]
    assert said((0, 5), (0.5, 4), (1.0, 5), (2.0, 3), (3.0, 3)) == expected
    # It found a free slot.
    assert said((0, None), (1, None)) == [None, None]
    # Its slot was taken by another one.
    assert said((0, None), (1, 2)) == [None, waiting(2)]


def test_no_silence_is_longer_than_ten_seconds():
    moments = [(float(second), 2) for second in range(31)]
    times = [time for (time, _), text in zip(moments, said(*moments), strict=True) if text]
    assert all(b - a < 10 for a, b in zip(times, [*times[1:], 31], strict=True))
    assert said((8.9, None), (9.1, None), (10.0, None)) == [None, b": working\n\n", None]


def test_after_the_first_text_a_stream_speaks_only_against_silence():
    comments = WaitingComments(0.0)
    assert comments.next(0.0, 3) == waiting(3)
    comments.text_sent(5.0)
    assert [comments.next(now, 2) for now in (5.1, 7.0, 13.9)] == [None] * 3
    assert comments.next(14.1, 2) == waiting(2)


@pytest.mark.parametrize(
    ("peer", "header", "expected"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("127.0.0.1", [], "127.0.0.1"),
        # A proxy on this machine adds its client to what that client sent, or after it.
        ("127.0.0.1", ["198.51.100.1, 203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.5"], "203.0.113.5"),
        ("::1", ["203.0.113.5"], "203.0.113.5"),
        ("::ffff:127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        # Any other machine may write what it likes.
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("::ffff:203.0.113.5", ["198.51.100.1"], "::ffff:203.0.113.5"),
    ],
)
def test_a_client_is_told_by_its_address_also_behind_a_proxy(peer, header, expected):
    assert client_address(peer, header) == expected


def test_models_are_named_as_their_folders_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [Path("x/new/run"), Path("x/old/run"), Path("y/old/other"), Path()]
    named = models_by_name(folders)
    assert list(named) == ["new/run", "old/run", "other", tmp_path.name]
    assert list(named.values()) == folders
    # One is the end of the other.
    assert list(models_by_name([Path("a/run"), Path("b/a/run")]))[1] == "b/a/run"
    assert len(models_by_name([Path("a/run"), Path("b/a/run")])) == 2


def test_every_model_has_a_name_that_can_be_written(tmp_path):
    folders = [tmp_path / "a" / "..", Path(os.fsdecode(b"caf\xe9")), Path(os.fsdecode(b"caf\xe8"))]
    names = list(models_by_name(folders))
    assert names == [tmp_path.name, r"caf\udce9", r"caf\udce8"]


def test_a_run_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("run")
    for second in ("run", "link", "../" + tmp_path.name + "/run"):
        with pytest.raises(InputError, match="twice"):
            models_by_name([tmp_path / "run", tmp_path / second])
