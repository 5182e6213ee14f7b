// Streams texts from the server into a document, and shows them as they arrive.
import { $, atEnd, scrollToEnd } from "./dom.js";
import { announce } from "./feedback.js";
import { waitingNote } from "./notes.js";
import { tokensOf } from "./probabilities.js";
import { samplingSettings } from "./sampling.js";
import { request, sseEvents, toFailure } from "./server.js";
import { state } from "./state.js";
import { save } from "./documents.js";

/**
 * Each stream is {target, model, path, body, addText}: the answer or text that grows, who is asked
 * and what, and a function that stores a part of the text.
 *
 * While they run, `state.generation` has the `controller` that stops them and the set `targets`.
 * What shows a target puts a function into the map `renderers`. The map `waiting` has the number of
 * requests before the one of a target that waits.
 *
 * Returns for each stream how it ended: {end, tokens, total, seconds, waited, tokenList, failure}.
 */
export async function streamTexts(doc, streams) {
  const controller = new AbortController();
  const targets = new Set(streams.map(({ target }) => target));
  const generation = { controller, targets, renderers: new Map(), waiting: new Map() };
  const renderSoon = throttled(() => {
    if (state.generation !== generation) return;
    const follow = atEnd();
    generation.renderers.forEach((render) => render());
    if (follow) scrollToEnd();
    $("latest").hidden = atEnd();
  });
  let saved = performance.now();
  const progress = () => {
    renderSoon();
    if (performance.now() < saved + 500) return;
    save(doc);
    saved = performance.now();
  };
  state.generation = generation;
  state.failure = null;
  // Its undo would no longer undo the last action.
  $("toast").hidden = true;
  announce("Generating");
  const outcomes = await Promise.all(
    streams.map((stream) => streamText(stream, generation, progress)),
  );
  state.generation = null;
  // A user who stopped, or opened another document, no longer waits for what failed.
  if (doc === state.document && !controller.signal.aborted)
    state.failure = outcomes.find(({ failure }) => failure)?.failure ?? null;
  return outcomes;
}

async function streamText(stream, { controller, waiting }, progress) {
  const { target, model, path, body, addText } = stream;
  const outcome = { end: "lost" };
  const clock = new Clock();
  const settings = { ...samplingSettings(), stream: true, stream_options: { include_usage: true } };
  const content = { model: model.id, ...body, ...settings };
  try {
    const options = {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify(content),
    };
    const response = await request(path, options, model);
    for await (const event of sseEvents(response)) {
      if (event.waiting !== undefined) {
        clock.wait();
        waiting.set(target, event.waiting);
        announce(waitingNote(event.waiting));
        progress();
        continue;
      }
      const { choices: [choice] = [], usage } = event;
      const part = choice?.delta?.content ?? choice?.text;
      if (part) {
        waiting.delete(target);
        clock.add(part.length);
        addText(part);
        progress();
      }
      if (choice?.logprobs) (outcome.tokenList ??= []).push(...tokensOf(choice.logprobs));
      outcome.end = choice?.finish_reason ?? outcome.end;
      if (usage) {
        outcome.tokens = usage.completion_tokens;
        outcome.total = usage.total_tokens;
      }
    }
  } catch (error) {
    outcome.end = controller.signal.aborted ? "stopped" : "lost";
    if (outcome.end === "lost") outcome.failure = toFailure(error);
  }
  return { ...outcome, ...clock.times() };
}

// A server sends a part about every tenth of a second.
const SHORTEST_SECONDS = 0.3;

/** How long a text waited, and how long it took from its first part on. */
class Clock {
  #started = performance.now();
  #hasWaited = false;
  #first = null;
  #firstLength = 0;
  #last = 0;
  #length = 0;

  wait() {
    this.#hasWaited = true;
  }

  add(length) {
    this.#last = performance.now();
    if (this.#first === null) {
      this.#first = this.#last;
      this.#firstLength = length;
    }
    this.#length += length;
  }

  /**
   * {seconds, waited}. The first part has arrived when the time begins, so `seconds` is
   * what the whole text would have taken at the speed of all further parts. A short time tells
   * when the last two parts came, and not how fast.
   */
  times() {
    const share = 1 - this.#firstLength / this.#length;
    const elapsed = (this.#last - this.#first) / 1000;
    return {
      ...(elapsed > SHORTEST_SECONDS && { seconds: elapsed / share }),
      ...(this.#hasWaited && this.#first && { waited: (this.#first - this.#started) / 1000 }),
    };
  }
}

/** Runs `render` at most once a frame and during at most a fifth of the time. */
function throttled(render) {
  let scheduled = false;
  let free = 0;
  const frame = () => {
    const started = performance.now();
    if (started < free) return requestAnimationFrame(frame);
    scheduled = false;
    render();
    free = started + 5 * (performance.now() - started);
  };
  return () => {
    if (!scheduled) requestAnimationFrame(frame);
    scheduled = true;
  };
}
