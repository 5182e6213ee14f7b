// What the page shows, in one object, and the functions that show it.

export const state = {
  // All models of the server, as /v1/models describes them.
  models: [],
  // What they do: "chat", or "text" if they continue texts. Before the server has answered, what
  // the last one did.
  kind: "chat",
  // The one that answers, and the one that answers beside it, if the user wants two answers.
  model: null,
  second: null,
  // The conversation or text on the screen.
  document: null,
  // {controller, targets, renderers, waiting}: see generation.js. null unless a model generates.
  generation: null,
  // The Failure of the last request.
  failure: null,
  // The token whose alternatives are shown.
  tipOf: null,
  // The text fields of the questions that the user changes, by their messages.
  edits: new Map(),
  // Of the next save.
  saveTimer: null,
  // Of the end of the toast.
  toastTimer: null,
};

/** Without a model, the failure to reach the server stays, with the button that tries again. */
export function clearFailure() {
  if (state.model) state.failure = null;
}

export const canChat = () => state.kind === "chat";
/** What the user calls a document. */
export const noun = () => (canChat() ? "conversation" : "text");

/** The model that wrote an answer, or the chosen one if the server no longer has it. */
export const modelOf = (message) =>
  state.models.find(({ id }) => id === message?.model) ?? state.model;

/**
 * Functions that show the state, which main.js sets: what changes the state calls them, and is
 * itself called by what they show.
 */
export const view = { show: null, showList: null, showControls: null, connect: null };
