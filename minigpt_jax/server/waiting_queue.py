"""Who gets the next slot: waiting answers take turns, so that nobody waits for all of another's."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from minigpt_jax.server.request import ActiveRequest

# One slot of this many is kept from a client that has all the others, so that another client need
# not wait for the end of a long answer. Servers with fewer slots keep none: one would be too large
# a share of them.
_SLOTS_PER_KEPT_SLOT = 8


class WaitingQueue:
    """Answers that wait for a slot.

    The client with the fewest answers in slots is next, and of a client the HTTP request with the
    fewest; among equals, the one whose last turn was the longest ago.
    """

    def __init__(self, num_slots: int):
        self._num_slots = num_slots
        # Whose turn ended the longest ago is first.
        self._waiting: list[ActiveRequest] = []
        # The answers in slots after the last one was taken.
        self._running: list[ActiveRequest] = []
        # What `positions` returned last, and for which running answers: many streams ask.
        self._positions: tuple[Sequence[ActiveRequest], dict[ActiveRequest, int]] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, answers: Iterable[ActiveRequest]) -> None:
        """They are behind all that wait, until the counts of answers in slots say otherwise."""
        self._replace([*self._waiting, *answers])

    def remove_finished(self) -> None:
        """Remove what has been cancelled."""
        self._replace([answer for answer in self._waiting if not answer.finished])

    def clear(self) -> list[ActiveRequest]:
        """Remove all, and return them."""
        removed = self._waiting
        self._replace([])
        return removed

    def take(self, running: Sequence[ActiveRequest]) -> ActiveRequest | None:
        """Remove the answer that gets the next free slot; None if there is none.

        `running`: the answers in slots.
        """
        for answer in self._running:
            if answer not in running:
                self._end_turn(answer)
        self._running = list(running)
        candidates = self._candidates(running)
        if not candidates:
            return None
        of_client = Counter(answer.client for answer in running)
        of_request = Counter(answer.http_request for answer in running)
        chosen = min(candidates, key=lambda a: (of_client[a.client], of_request[a.http_request]))
        self._running.append(chosen)
        self._replace([answer for answer in self._waiting if answer is not chosen])
        return chosen

    def positions(self, running: Sequence[ActiveRequest]) -> dict[ActiveRequest, int]:
        """For each answer that must wait, how many enter before it if nothing new arrives.

        Answers for which a slot is free are not among them.
        """
        if self._positions is None or self._positions[0] != running:
            rest = WaitingQueue(self._num_slots)
            rest.add(self._waiting)
            entered = list(running)
            while entering := rest.take(entered):
                entered.append(entering)
            order = _in_turn(rest.clear(), entered)
            self._positions = running, {answer: number for number, answer in enumerate(order)}
        return self._positions[1]

    def _end_turn(self, ended: ActiveRequest) -> None:
        """Its request is now behind the others of its client, and its client behind the others.

        At the end and not when it began, so that whoever came meanwhile is before them.
        """
        # Sorting keeps the order of equals.
        waiting = sorted(self._waiting, key=lambda a: a.http_request == ended.http_request)
        self._replace(sorted(waiting, key=lambda a: a.client == ended.client))

    def _replace(self, waiting: list[ActiveRequest]) -> None:
        self._waiting = waiting
        self._positions = None

    def _candidates(self, running: Sequence[ActiveRequest]) -> list[ActiveRequest]:
        """The waiting answers that may have the next free slot."""
        free = self._num_slots - len(running)
        if free <= 0:
            return []
        kept = self._num_slots // _SLOTS_PER_KEPT_SLOT
        # What fits as a whole need not leave a slot free.
        if free > kept or len(self._waiting) <= free:
            return self._waiting
        of_client = Counter(answer.client for answer in running)
        return [a for a in self._waiting if of_client[a.client] < self._num_slots - kept]


def _in_turn(
    waiting: Sequence[ActiveRequest], running: Sequence[ActiveRequest]
) -> list[ActiveRequest]:
    """`waiting` in the order in which they enter."""
    by_request = _sorted_by_turns(waiting, running, lambda answer: answer.http_request)
    return _sorted_by_turns(by_request, running, lambda answer: answer.client)


def _sorted_by_turns(
    waiting: Sequence[ActiveRequest],
    running: Sequence[ActiveRequest],
    owner: Callable[[ActiveRequest], object],
) -> list[ActiveRequest]:
    """Sorted by how many answers their owner has in slots or earlier in `waiting`."""
    counts = Counter(map(owner, running))
    turns = []
    for answer in waiting:
        turns.append(counts[owner(answer)])
        counts[owner(answer)] += 1
    return [waiting[i] for i in sorted(range(len(waiting)), key=turns.__getitem__)]
