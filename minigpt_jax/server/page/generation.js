// Streams text from the server into a document, and shows it as it arrives.
import { $, atEnd, scrollToEnd } from "./dom.js";
import { announce } from "./feedback.js";
import { request, sseEvents, toFailure } from "./server.js";
import { samplingSettings } from "./settings.js";
import { state } from "./state.js";
import { save } from "./storage.js";

/**
 * Streams text from the server: `addText` stores each part, and the generation's `render`, which
 * the caller sets, shows it. Returns how it ended.
 */
export async function streamText({ doc, path, body, message, addText }) {
  const controller = new AbortController();
  const started = performance.now();
  const outcome = { end: "lost" };
  const renderSoon = throttled(() => {
    if (state.generation?.controller !== controller) return;
    const follow = atEnd();
    state.generation.render();
    if (follow) scrollToEnd();
    $("latest").hidden = atEnd();
  });
  state.generation = { controller, message };
  state.failure = null;
  // Its undo would no longer undo the last action.
  $("toast").hidden = true;
  announce("Generating");
  try {
    const settings = {
      ...samplingSettings(),
      stream: true,
      stream_options: { include_usage: true },
    };
    const response = await request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify({ model: state.model.id, ...body, ...settings }),
    });
    let saved = started;
    for await (const { choices: [choice] = [], usage } of sseEvents(response)) {
      const part = choice?.delta?.content ?? choice?.text;
      if (part) {
        addText(part);
        renderSoon();
      }
      if (performance.now() > saved + 500) {
        save(doc);
        saved = performance.now();
      }
      outcome.end = choice?.finish_reason ?? outcome.end;
      if (usage) {
        const seconds = (performance.now() - started) / 1000;
        Object.assign(outcome, {
          tokens: usage.completion_tokens,
          total: usage.total_tokens,
          seconds,
        });
      }
    }
  } catch (error) {
    outcome.end = controller.signal.aborted ? "stopped" : "lost";
    if (outcome.end === "lost") state.failure = toFailure(error);
  }
  state.generation = null;
  return outcome;
}

/** Runs `render` at most once a frame and during at most a fifth of the time. */
function throttled(render) {
  let waiting = false;
  let free = 0;
  const frame = () => {
    const started = performance.now();
    if (started < free) return requestAnimationFrame(frame);
    waiting = false;
    render();
    free = started + 5 * (performance.now() - started);
  };
  return () => {
    if (!waiting) requestAnimationFrame(frame);
    waiting = true;
  };
}
