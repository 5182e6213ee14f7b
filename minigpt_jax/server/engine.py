"""Continuous batching: any number of requests share a fixed number of slots.

A waiting request enters the first free slot (prefill), and all slots then decode together, one
block of tokens at a time. Between two blocks finished requests leave and waiting ones enter.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from minigpt_jax.decoding import TopLogprobs
from minigpt_jax.generate import accept_tokens
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.server.device_batch import MIN_CACHE_LENGTH, BlockPlan, DeviceBatch
from minigpt_jax.server.logprobs import echoed_prompt, with_logprobs
from minigpt_jax.server.metrics import Metrics
from minigpt_jax.server.pace import TARGET_BLOCK_SECONDS, Pace
from minigpt_jax.server.request import (
    ActiveRequest,
    Delta,
    EngineClosed,
    QueueFull,
    Request,
    Token,
    check_prompt,
)
from minigpt_jax.server.stats import CompilationCounter, EngineStats
from minigpt_jax.server.waiting_queue import WaitingQueue
from minigpt_jax.text_stream import TextStream


class InFlightBlock(NamedTuple):
    """A block that the device works on, and the requests whose rows are in it."""

    active: list[tuple[int, ActiveRequest]]
    tokens: jax.Array
    logprobs: TopLogprobs | None
    started: float
    # Whether its time includes a prefill and so does not tell how long a token takes.
    after_prefill: bool


class BlockOutput(NamedTuple):
    """The accepted tokens of one request from one block, not yet decoded to text."""

    active: ActiveRequest
    tokens: list[Token]
    finish_reason: str | None


class Engine:
    """The slots, the queue and the thread that runs them. The constructor compiles all programs."""

    def __init__(
        self,
        run: LoadedRun,
        *,
        num_slots: int = 8,
        queue_size: int = 64,
        quantize: str | None = None,
        min_cache_length: int = MIN_CACHE_LENGTH,
        target_block_seconds: float = TARGET_BLOCK_SECONDS,
        compilations: CompilationCounter | None = None,
    ):
        """`queue_size`: requests that may wait. `quantize`: see `prepare_for_decoding`.

        `compilations`: the counter of this process, if it has one.
        """
        self.config = run.config
        self.tokenizer = run.tokenizer
        self.num_slots = num_slots
        self.queue_size = queue_size
        self._pace = Pace(target_block_seconds)
        self._slots: list[ActiveRequest | None] = [None] * num_slots
        self._waiting = WaitingQueue(num_slots)
        # Guards the slots, the queue and the stats; notified when the thread may have work.
        self._changed = threading.Condition()
        self._closing = False
        self._stats = EngineStats()
        self._compilations = compilations or CompilationCounter()
        self._batch = DeviceBatch(
            run, num_slots, quantize=quantize, min_cache_length=min_cache_length
        )
        self._batch.warm_up()
        self._compilations.mark_warm()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        requests: Sequence[Request],
        receive: Callable[[int, Delta], object],
        client: str = "",
    ) -> list[ActiveRequest]:
        """Queue all `requests`, which are one HTTP request of `client`, or none.

        `receive(i, delta)` is called for the i-th request in the engine's thread and must return
        immediately. Raises InputError for a prompt that does not fit, QueueFull, and EngineClosed
        after `close` or a failure.
        """
        for request in requests:
            check_prompt(request.prompt, self.config.context, request.max_tokens)
        http_request = object()
        added = [
            ActiveRequest(
                request,
                partial(receive, i),
                TextStream(self.tokenizer, request.stop),
                client,
                http_request,
            )
            for i, request in enumerate(requests)
        ]
        with self._changed:
            if self._closing:
                raise EngineClosed
            room = self.queue_size + self._slots.count(None) - len(self._waiting)
            if len(added) > room:
                self._stats.metrics.refused.inc(len(added))
                raise QueueFull(self._seconds_until_ended(len(added) - room))
            self._waiting.add(added)
            self._stats.submitted += len(added)
            self._changed.notify()
        return added

    def cancel(self, cancelled: Sequence[ActiveRequest]) -> None:
        """Send nothing more for these; their slots are free before the next block."""
        with self._changed:
            unfinished = [active for active in cancelled if not active.finished]
            self._stats.cancel(unfinished)
            for active in unfinished:
                active.finished = True
            self._waiting.remove_finished()
            self._changed.notify()

    def queue_position(self, answers: Sequence[ActiveRequest]) -> int | None:
        """How many others get a slot before the first of `answers`.

        None if one of them has a slot, or gets one when the current block ends.
        """
        with self._changed:
            numbers = self._waiting.positions(self._running())
            unfinished = [active for active in answers if not active.finished]
        if not unfinished or any(active not in numbers for active in unfinished):
            return None
        return min(numbers[active] for active in unfinished)

    def close(self) -> None:
        """Finish all requests with the reason "closed" and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def health(self) -> dict:
        """The numbers of /health."""
        with self._changed:
            return {
                "alive": not self._closing,
                "slots": self.num_slots,
                "active": self.num_slots - self._slots.count(None),
                "queued": len(self._waiting),
                "compilations": self._compilations.count,
                "compilations_since_warm_up": self._compilations.since_warm_up,
                **self._stats.summary(),
            }

    def metrics(self) -> Metrics:
        """The numbers of /metrics."""
        with self._changed:
            running = sum(not active.finished for active in self._running())
            self._stats.metrics.set_load(self.num_slots, running, len(self._waiting))
        return self._stats.metrics

    def _running(self) -> list[ActiveRequest]:
        return [active for active in self._slots if active is not None]

    def _seconds_until_ended(self, count: int) -> float:
        """About how long it takes until `count` of the answers in slots and queue have ended."""
        seconds_each = self._stats.seconds_in_slot
        if seconds_each is None:
            longest = max((active.remaining for active in self._running()), default=0)
            seconds_each = longest * self._pace.seconds_per_token
        return count * seconds_each / self.num_slots

    # Everything below runs in the engine's own thread.

    def _run(self) -> None:
        outputs: list[BlockOutput] = []
        try:
            while not self._closing:
                self._free_slots()
                prefilled = self._admit()
                active = [(row, a) for row, a in enumerate(self._slots) if a is not None]
                block = self._dispatch(active, prefilled) if active else None
                # The text of the previous block is made while the device works on this one.
                self._emit(outputs)
                # If collecting fails, nothing may be sent twice.
                outputs = []
                if block:
                    outputs = self._collect(block)
                if not active:
                    self._wait_for_work()
        except Exception:
            # For example, the device is out of memory. Clients get "closed", /health gets "failed".
            traceback.print_exc()
        # Requests that finished in the last block have already left their slots.
        self._emit(outputs)
        self._close_all()

    def _wait_for_work(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)

    def _free_slots(self) -> None:
        """Take finished and cancelled requests out of their slots."""
        with self._changed:
            self._slots = [None if a is None or a.finished else a for a in self._slots]

    def _admit(self) -> bool:
        """Prefill waiting requests into free slots. Returns whether there were any."""
        prefilled = False
        for row in range(self.num_slots):
            with self._changed:
                if self._slots[row] is not None:
                    continue
                active = self._waiting.take(self._running())
                if active is None:
                    break
                self._slots[row] = active
                active.admitted = time.monotonic()
                self._stats.admit(active)
            if active.request.echo_from is not None:
                self._send(active, echoed_prompt(active, self._batch))
            if active.finished:
                # It was the prompt only, or was cancelled meanwhile.
                with self._changed:
                    self._slots[row] = None
                continue
            self._batch.prefill(row, active.request.prompt)
            prefilled = True
        return prefilled

    def _dispatch(
        self, active: list[tuple[int, ActiveRequest]], after_prefill: bool
    ) -> InFlightBlock:
        """Start a block for the `active` requests.

        While others wait, the block ends as soon as one request ends: an empty slot costs as much
        time as a full one, so it should be filled immediately.
        """
        others_wait = bool(self._waiting)
        remaining = [a.remaining for _, a in active]
        count = self._pace.block_length(min(remaining) if others_wait else max(remaining))
        started = time.monotonic()
        plan = BlockPlan(
            sampling={row: a.request.sampling for row, a in active},
            max_new_tokens=count,
            stop_after=1 if others_wait else len(active),
            max_length=max(a.length for _, a in active) + count,
            with_logprobs=any(a.request.num_logprobs is not None for _, a in active),
        )
        tokens, logprobs = self._batch.decode(plan)
        return InFlightBlock(active, tokens, logprobs, started, after_prefill)

    def _collect(self, block: InFlightBlock) -> list[BlockOutput]:
        """Wait for a block, and free the slots of requests that it finishes.

        The slots are freed before the text is made, so that waiting requests can enter them sooner.
        """
        tokens, logprobs = jax.device_get((block.tokens, block.logprobs))
        seconds = time.monotonic() - block.started
        # A row holds -1 after its end, and the row that ended last has a token of each iteration.
        iterations = (tokens >= 0).sum(1).max()
        if not block.after_prefill:
            self._pace.update(seconds / iterations)
        outputs = []
        finished_rows = []
        for row, active in block.active:
            if active.finished:
                continue
            row_logprobs = logprobs and TopLogprobs(*(a[row] for a in logprobs))
            output = self._accept(active, tokens[row, :iterations], row_logprobs)
            outputs.append(output)
            if output.finish_reason:
                finished_rows.append(row)
        with self._changed:
            self._stats.blocks.append((sum(len(o.tokens) for o in outputs), seconds))
            for row in finished_rows:
                self._slots[row] = None
        return outputs

    def _accept(
        self, active: ActiveRequest, drawn: np.ndarray, logprobs: TopLogprobs | None
    ) -> BlockOutput:
        ids = [int(id) for id in drawn if id >= 0]
        accepted, finish_reason = accept_tokens(
            ids,
            length=active.length,
            max_tokens=active.remaining,
            context=self.config.context,
        )
        if finish_reason == "stop" and active.request.keeps_stop_token:
            accepted = ids[: len(accepted) + 1]
        active.num_generated += len(accepted)
        num_logprobs = active.request.num_logprobs
        if num_logprobs is None or logprobs is None:
            tokens = [Token(id) for id in accepted]
        else:
            tokens = with_logprobs(accepted, logprobs, num_logprobs)
        return BlockOutput(active, tokens, finish_reason)

    def _emit(self, outputs: list[BlockOutput]) -> None:
        """Decode the accepted tokens to text and send it."""
        for active, tokens, finish_reason in outputs:
            if active.finished:
                continue
            text, used = active.text.push_until_stop([token.id for token in tokens])
            if active.text.stopped:
                finish_reason = "stop"
            if finish_reason:
                # Add what was held back because a later token could have changed it.
                text += active.text.push([], final=True)
            self._send(active, Delta(text, tokens[:used], finish_reason))

    def _send(self, active: ActiveRequest, delta: Delta) -> None:
        with self._changed:
            if active.finished:
                return
            active.finished = delta.finish_reason is not None
            self._stats.add(active, delta)
        try:
            active.receive(delta)
        except Exception:
            # The client's event loop has ended. This must not end the engine.
            active.finished = True

    def _close_all(self) -> None:
        with self._changed:
            self._closing = True
            unfinished = [*self._running(), *self._waiting.clear()]
            self._slots = [None] * self.num_slots
        for active in unfinished:
            self._send(active, Delta("", [], "closed"))
