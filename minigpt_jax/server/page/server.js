// Requests to the server, and its server-sent events. Addresses are relative, because a proxy may
// show the page under a path.
import { plural } from "./dom.js";
import { canChat, noun, state } from "./state.js";

export class Failure extends Error {
  /**
   * `refused`: the same request would fail again. `tooLong`: because the text is too long.
   * chat.js adds `returnedTo`.
   */
  constructor(title, remedy, { refused = false, tooLong = false } = {}) {
    super(title);
    Object.assign(this, { title, remedy, refused, tooLong });
  }
}

export const toFailure = (error) =>
  error instanceof Failure
    ? error
    : new Failure("The server sent an invalid response.", error.message);

/** `model`: the one that is asked. */
export async function request(path, options, model = null) {
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
  throw await failureOf(response, model);
}

async function failureOf(response, model) {
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
  const isOverContext = model && code === "context_length_exceeded";
  const title = isOverContext ? overContext(model) : message || `The server answered ${status}.`;
  const remedy = isOverContext ? remedies[413] : (remedies[status] ?? later);
  const tooLong = isOverContext || status === 413;
  return new Failure(title, remedy, { refused: status in remedies, tooLong });
}

function overContext({ id, context }) {
  const whose = state.models.length > 1 ? ` that ${id} has` : "";
  return `The ${noun()} does not fit into the context of ${plural(context, "token")}${whose}.`;
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
