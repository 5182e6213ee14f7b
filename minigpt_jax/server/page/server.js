// Requests to the server, and its server-sent events.
import { canChat } from "./state.js";

export class Failure extends Error {
  constructor(title, remedy, tooLong = false) {
    super(title);
    Object.assign(this, { title, remedy, tooLong });
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
  const details = (await response.json().catch(() => null))?.error ?? {};
  const title = details.message || `The server answered ${response.status}.`;
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait > 0 ? `Try again in ${wait} s.` : "Try again in a moment.";
  const remedies = {
    400: "Change the message or the settings, and try again.",
    401: "Reload the page and enter the key as the password.",
    404: "The server may have a different model now: reload the page.",
    413: "Shorten the text.",
    429: later,
    503: later,
  };
  const tooLong = response.status === 400 && /context/i.test(`${details.code} ${details.message}`);
  const shortenAdvice = canChat()
    ? "Start a new conversation, or delete messages of this one."
    : "Delete part of the text, or start a new one.";
  throw new Failure(
    title,
    tooLong ? shortenAdvice : (remedies[response.status] ?? later),
    tooLong,
  );
}

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
    for (const line of lines.filter((l) => l.startsWith("data:"))) {
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(event.error.message, "The text so far is kept.");
      yield event;
    }
  }
}
