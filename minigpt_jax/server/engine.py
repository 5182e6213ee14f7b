"""Continuous batching: any number of requests share a fixed number of slots, which one compiled step moves forward together.

A prompt is prefilled alone, padded to a power of two, and enters its slot of the shared cache; then it is drawn from
together with whatever else is there. Shapes are few and all compiled at the start. A row's text is a function of its
request alone, but for ties where a neighbour makes steps look at more of the cache, which changes the order of a sum:
nothing in a step mixes rows, and randomness belongs to (seed, position).
"""

import itertools
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import decoding
from minigpt_jax.decoding import BLOCK, DecodeState
from minigpt_jax.errors import InputError
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPT, GPTConfig, empty_cache
from minigpt_jax.sampling import SamplingParams, sampling_params
from minigpt_jax.text_stream import TextStream
from minigpt_jax.tokenizer import END, END_OF_TEXT

TOP = 20  # most likely tokens that may be asked for beside each drawn one
SPAN = 64  # of a cache, the least that a step looks at
PACE = 0.1  # seconds that a step should take: how long newcomers wait, and how often text moves
_STOP_TOKENS = np.array([END, END_OF_TEXT])


class Busy(Exception):
    """The queue is full: try again later."""


class Closed(Exception):
    """The engine takes no more requests."""


class Token(NamedTuple):
    """One id of an answer; with its log-probability and the most likely ones (id, log-probability) if they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Piece(NamedTuple):
    """What a step adds to an answer. `reason` comes with the last piece: "stop", "length" or "closed" (the engine gave up)."""

    text: str
    tokens: list[Token]
    reason: str | None


@dataclass(frozen=True)
class Job:
    """What to write. `sampling` is of one row; `logprobs`: None, or how many of the most likely tokens to name (up to TOP)."""

    prompt: Sequence[int]
    sampling: SamplingParams
    max_tokens: int
    stop: Sequence[str] = ()
    logprobs: int | None = None


@dataclass(eq=False)
class Ticket:
    """A job on its way. `receive` is called from the engine's thread and must return at once."""

    job: Job
    receive: Callable[[Piece], object]
    text: TextStream
    asked: float = field(default_factory=time.monotonic)
    written: int = 0  # tokens drawn
    answered: bool = False  # the first token was handed out
    over: bool = False  # ended, or cancelled: nothing more is handed out


class Step(NamedTuple):
    """A block on its way from the device, and whose rows it holds."""

    riders: list[tuple[int, Ticket]]
    tokens: jax.Array
    likely: decoding.TopLogprobs | None
    started: float
    paced: bool  # nothing but the step itself was waited for


class Harvest(NamedTuple):
    """Tokens of one request from one block, not yet text. `ended`: by a stop token or for want of room."""

    ticket: Ticket
    tokens: list[Token]
    ended: str | None


class Engine:
    """Slots, the queue before them, and the thread that moves them. Making one compiles everything it will ever need."""

    def __init__(
        self,
        run: LoadedRun,
        *,
        slots: int = 8,
        queue: int = 64,
        dtype=None,
        quantize: str | None = None,
    ):
        """`queue`: requests that may wait; `dtype`, `quantize`: see `decoding.prepare_for_decoding`."""
        config, params = run.config, run.params
        self.config, self.tokenizer, self.slots, self.queue = config, run.tokenizer, slots, queue
        self._compilations = CompilationCounter()
        self._model, self._params = decoding.prepare_for_decoding(params, config, dtype, quantize)
        place = partial(jax.device_put, device=jax.tree.leaves(params)[0].sharding)
        vocab = config.padded_vocab
        blank = (
            np.zeros(slots, np.int32),
            np.zeros(slots, np.int32),
            np.zeros((slots, vocab), bool),
            np.ones(slots, bool),
        )
        self._state = DecodeState(*place((empty_cache(config, slots, self._model.dtype), *blank)))
        self._idle = sampling_params(1, config, temperature=0.0)
        self._tickets: list[Ticket | None] = [None] * slots
        self._waiting: deque[Ticket] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._numbers = Numbers()
        self._per_token = 0.0  # seconds, of late
        self._warm_up()
        self._compiled_at_start = self._compilations.count
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job], receive: Callable[[int, Piece], object]) -> list[Ticket]:
        """Queue all `jobs` or none; `receive(i, piece)` is called for the i-th from the engine's thread, and must return at once.

        Raises InputError for a prompt that does not fit, Busy when the queue has no room, Closed after `close` or a failure.
        """
        for job in jobs:
            check_prompt(job.prompt, self.config)
        tickets = [
            Ticket(job, partial(receive, i), TextStream(self.tokenizer, job.stop))
            for i, job in enumerate(jobs)
        ]
        with self._change:
            if self._closing:
                raise Closed
            free = sum(ticket is None for ticket in self._tickets)
            if len(self._waiting) + len(tickets) > self.queue + free:
                raise Busy
            self._waiting.extend(tickets)
            self._numbers.answers += len(tickets)
            self._change.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Forget them: nothing more is handed out, and their slots are free before the next step."""
        with self._change:
            for ticket in tickets:
                ticket.over = True
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.over)
            self._change.notify()

    def close(self) -> None:
        """End all requests with "closed" and the thread with them."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    def health(self) -> dict:
        """Numbers for an operator; times in seconds."""
        with self._change:
            return {
                "alive": not self._closing,
                "slots": self.slots,
                "active": sum(ticket is not None for ticket in self._tickets),
                "queued": len(self._waiting),
                "compilations": self._compilations.count,
                "compilations_since_warm_up": self._compilations.count - self._compiled_at_start,
                **self._numbers.summary(),
            }

    # Everything below runs in the engine's own thread, except for the warm-up before it.

    def _warm_up(self) -> None:
        """Compile every shape. Twice through: the first state was put on the device by hand, the later ones by programs."""
        for _ in range(2):
            for width in _widths(self.config.context):
                self._state = _enter(
                    self._model,
                    self._params,
                    self._state,
                    np.zeros((1, width), np.int32),
                    np.int32(1),
                    np.int32(0),
                )
            for top in (0, TOP):
                for span in _spans(self.config.context, top):
                    nobody = Ticket(
                        Job([0] * (span - 1), self._idle, 1, logprobs=top or None),
                        lambda piece: None,
                        TextStream(self.tokenizer),
                    )
                    self._dispatch([(0, nobody)], paced=False)
        jax.block_until_ready(self._state)

    def _run(self) -> None:
        harvest: list[Harvest] = []
        try:
            while not self._closing:
                self._leave()
                entered = self._admit()
                riders = [
                    (row, ticket) for row, ticket in enumerate(self._tickets) if ticket is not None
                ]
                step = self._dispatch(riders, paced=not entered) if riders else None
                self._hand_out(harvest)  # while the device works
                harvest = self._collect(step) if step else []
                if not step:
                    self._rest()
        except Exception:
            # A device out of memory, say. Whoever waits must hear of it; /health tells the rest.
            traceback.print_exc()
        self._hand_out(harvest)  # whoever ended with the last block has left its slot already
        self._end_all()

    def _rest(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closing)

    def _leave(self) -> None:
        """Free the slots of requests that are over."""
        with self._change:
            self._tickets = [
                None if ticket is None or ticket.over else ticket for ticket in self._tickets
            ]

    def _admit(self) -> bool:
        """Prefill waiting requests into free slots; whether there was one."""
        entered = False
        for row in range(self.slots):
            with self._change:
                if self._tickets[row] is not None or not self._waiting:
                    continue
                ticket = self._tickets[row] = self._waiting.popleft()
            prompt = ticket.job.prompt
            tokens = np.zeros(
                (1, next(w for w in _widths(self.config.context) if w >= len(prompt))), np.int32
            )
            tokens[0, : len(prompt)] = prompt
            self._state = _enter(
                self._model, self._params, self._state, tokens, np.int32(len(prompt)), np.int32(row)
            )
            entered = True
        return entered

    def _dispatch(self, riders: list[tuple[int, Ticket]], paced: bool) -> Step:
        """Send the device on its way with one block for `riders`: as many tokens as fit the pace, no more than the longest needs.

        While others wait for a slot, the first to end, by its length or a stop token, ends the block: an idle row costs as much
        as a busy one.
        """
        left = [ticket.job.max_tokens - ticket.written for _, ticket in riders]
        awaited = bool(self._waiting)
        needed = min(left) if awaited else max(left)
        count = max(1, min(BLOCK, needed, int(PACE / self._per_token) if self._per_token else 1))
        settings, done = [self._idle] * self.slots, np.ones(self.slots, bool)
        for row, ticket in riders:
            settings[row], done[row] = ticket.job.sampling, False
        together = SamplingParams(
            *(np.concatenate(column) for column in zip(*settings, strict=True))
        )
        top = TOP if any(ticket.job.logprobs is not None for _, ticket in riders) else 0
        started = time.monotonic()
        longest = max(len(ticket.job.prompt) + ticket.written for _, ticket in riders) + count
        slots = next(
            s for s in _spans(self.config.context, top) if s >= min(longest, self.config.context)
        )
        state = self._state._replace(done=done)
        enough = self.slots - len(riders) + 1 if awaited else self.slots
        self._state, tokens, likely = decoding.decode(
            self._model,
            self._params,
            state,
            together,
            _STOP_TOKENS,
            np.int32(count),
            np.int32(enough),
            num_logprobs=top,
            cache_length=slots,
        )
        return Step(riders, tokens, likely, started, paced)

    def _collect(self, step: Step) -> list[Harvest]:
        """Wait for a block. Whoever ends with it leaves at once, so that the next request enters before this one's text is made."""
        block, likely = jax.device_get((step.tokens, step.likely))
        elapsed = time.monotonic() - step.started
        turns = (
            (block >= 0).sum(1).max()
        )  # of the loop: who did not end, or ended last, has a token of each
        if step.paced:
            self._per_token += (elapsed / turns - self._per_token) * (0.2 if self._per_token else 1)
        harvest = []
        for row, ticket in step.riders:
            if not ticket.over:
                harvest.append(
                    self._reap(
                        ticket,
                        block[row, :turns],
                        likely and decoding.TopLogprobs(*(a[row] for a in likely)),
                    )
                )
        with self._change:
            self._numbers.blocks.append((sum(len(h.tokens) for h in harvest), elapsed))
            for row, ticket in step.riders:
                if any(h.ticket is ticket and h.ended for h in harvest):
                    self._tickets[row] = None
        return harvest

    def _reap(
        self, ticket: Ticket, drawn: np.ndarray, likely: decoding.TopLogprobs | None
    ) -> Harvest:
        """A row's share of a block: its tokens up to its end."""
        job, live = ticket.job, [int(id) for id in drawn if id >= 0]
        stopped = next((i for i, id in enumerate(live) if id in _STOP_TOKENS), None)
        room = job.max_tokens - ticket.written
        kept = live[: room if stopped is None else min(stopped, room)]
        full = (
            len(live) < len(drawn)
            or len(job.prompt) + ticket.written + len(live) >= self.config.context
        )
        ended = (
            "stop"
            if stopped is not None and stopped < room
            else "length"
            if full or len(kept) == room
            else None
        )
        ticket.written += len(kept)
        if job.logprobs is None or likely is None:
            tokens = [Token(id) for id in kept]
        else:
            n = job.logprobs
            tops = [
                tuple(zip(ids[:n].tolist(), values[:n].tolist(), strict=True))
                for ids, values in zip(likely.ids, likely.values, strict=True)
            ]
            tokens = [Token(id, float(likely.drawn[i]), tops[i]) for i, id in enumerate(kept)]
        return Harvest(ticket, tokens, ended)

    def _hand_out(self, harvest: list[Harvest]) -> None:
        """Make text of tokens, one by one so that an answer's last token is the one that completed a stop string, and pass it on."""
        for ticket, tokens, ended in harvest:
            if ticket.over:
                continue
            text, used = "", 0
            for token in tokens:
                text += ticket.text.push(
                    [token.id] if token.id < END_OF_TEXT else []
                )  # role markers are no text
                used += 1
                if ticket.text.stopped:
                    break
            reason = "stop" if ticket.text.stopped else ended
            if reason:
                text += ticket.text.push([], final=True)
            self._deliver(ticket, Piece(text, tokens[:used], reason))

    def _deliver(self, ticket: Ticket, piece: Piece) -> None:
        with self._change:
            if ticket.over:
                return
            ticket.over = piece.reason is not None
            self._numbers.count(ticket, piece)
        try:
            ticket.receive(piece)
        except Exception:  # whoever asked is gone, loop and all
            ticket.over = True

    def _end_all(self) -> None:
        with self._change:
            self._closing = True
            left = [ticket for ticket in (*self._tickets, *self._waiting) if ticket is not None]
            self._tickets, self._waiting = [None] * self.slots, deque()
        for ticket in left:
            self._deliver(ticket, Piece("", [], "closed"))


def check_prompt(prompt: Sequence[int], config: GPTConfig) -> None:
    """Raises InputError unless `prompt` leaves room for a token."""
    if not 0 < len(prompt) < config.context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, and this model's context of {config.context} must hold it and an answer: shorten it"
        )


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _enter(model: GPT, params, state: DecodeState, tokens, size, row) -> DecodeState:
    """Prefill `tokens` [1, T], `size` of them real, in a cache of its own, and put all that follows from them into `row`."""
    width = tokens.shape[1]
    alone = jax.tree.map(
        lambda a: jnp.zeros((1, a.shape[1], width, a.shape[3]), a.dtype), state.cache
    )
    alone = decoding.prefill(model, params, alone, tokens, jnp.zeros(1, jnp.int32))
    cache = jax.tree.map(
        lambda whole, new: jax.lax.dynamic_update_slice(whole, new, (row, 0, 0, 0)),
        state.cache,
        alone,
    )
    vocab = state.penalized.shape[1]
    places = jnp.where(jnp.arange(width) < size, tokens[0], vocab)  # padding is nobody's token
    seen = jnp.zeros(vocab, bool).at[places].set(True, mode="drop")
    last = state.last.at[row].set(tokens[0, size - 1])
    # The last token is in the cache too, and is written once more when the loop begins with it.
    return DecodeState(
        cache,
        last,
        state.length.at[row].set(size - 1),
        state.penalized.at[row].set(seen),
        state.done,
    )


def _widths(context: int) -> list[int]:
    """Widths of a padded prompt: powers of two from 16 on, and the context."""
    return [
        *itertools.takewhile(lambda w: w < context, (16 << i for i in itertools.count())),
        context,
    ]


def _spans(context: int, top: int) -> list[int]:
    """How much of the cache a step may look at, which every token costs. All of it with log-probabilities: few ask for
    them, and each program takes long to compile."""
    if top:
        return [context]
    return [
        *itertools.takewhile(lambda s: s < context, (SPAN << i for i in itertools.count())),
        context,
    ]


class CompilationCounter:
    """Counts what this process compiles, a program fetched from disk included."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@dataclass
class Numbers:
    """What has happened so far, and how fast it went of late."""

    answers: int = 0  # asked for
    tokens: int = 0
    first: deque[float] = field(
        default_factory=lambda: deque(maxlen=1024)
    )  # seconds to the first token, of the last requests
    blocks: deque[tuple[int, float]] = field(
        default_factory=lambda: deque(maxlen=512)
    )  # tokens and seconds of the last steps

    def count(self, ticket: Ticket, piece: Piece) -> None:
        """Add a piece, the first of its ticket or a later one."""
        if piece.tokens and not ticket.answered:
            ticket.answered = True
            self.first.append(time.monotonic() - ticket.asked)
        self.tokens += len(piece.tokens)

    def summary(self) -> dict:
        """For `Engine.health`."""
        spent = sum(seconds for _, seconds in self.blocks)
        quantiles = (
            np.quantile(self.first, (0.5, 0.95)).round(4).tolist() if self.first else (None, None)
        )
        return {
            "answers": self.answers,
            "tokens": self.tokens,
            "tokens_per_second": round(sum(tokens for tokens, _ in self.blocks) / spent, 1)
            if spent
            else None,
            "time_to_first_token": dict(zip(("p50", "p95"), quantiles, strict=True)),
        }
