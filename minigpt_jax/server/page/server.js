// Requests to the server, and its server-sent events. Addresses are relative, because a proxy may
// show the page under a path.
import { plural } from "./dom.js";
import { canChat, state } from "./state.js";

export class Failure extends Error {
  /**
   * `retry` tells whether the same request may succeed later. `refused`: the server did not accept
   * the text. `tooLong`: it does not fit into the context.
   */
  constructor(title, remedy, { retry = true, refused = false, tooLong = false } = {}) {
    super(title);
    Object.assign(this, { title, remedy, retry, refused, tooLong });
  }
}

export const toFailure = (error) =>
  error instanceof Failure
    ? error
    : new Failure("The server sent an invalid response.", error.message);

export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(
      "The server cannot be reached.",
      "Check that it is running, then try again.",
    );
  }
  if (response.ok) return response;
  throw await failureOf(response);
}

async function failureOf(response) {
  const { status } = response;
  const { message, code } = (await response.json().catch(() => null))?.error ?? {};
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait > 0 ? `Try again in ${wait} s.` : "Try again in a moment.";
  const what = canChat() ? "message" : "text";
  const remedies = {
    400: `Change the ${what} or the settings.`,
    401: "Reload the page and enter the key as the password.",
    403: "Open this page at an address that the server accepts.",
    404: "The server may have a different model now: reload the page.",
    413: `Shorten the ${what}.`,
  };
  const tooLong = code === "context_length_exceeded";
  const context = plural(state.model?.context ?? 0, "token");
  return new Failure(
    tooLong
      ? `The ${canChat() ? "conversation" : "text"} does not fit into the context of ${context}.`
      : message || `The server answered ${status}.`,
    tooLong ? `Shorten the ${what}.` : (remedies[status] ?? later),
    { retry: !(status in remedies), refused: [400, 413].includes(status), tooLong },
  );
}

const WAITING = /^: *waiting, (\d+) before you$/;

/** The events, and {waiting: N} for the comments that the server sends while a request waits. */
export async function* sseEvents(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError"
        ? error
        : new Failure("The connection was lost.", "The text so far is kept.");
    });
    if (done) throw new Failure("The answer is incomplete.", "The text so far is kept.");
    const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const waiting = line.match(WAITING);
      if (waiting) yield { waiting: Number(waiting[1]) };
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(event.error.message, "The text so far is kept.");
      yield event;
    }
  }
}
