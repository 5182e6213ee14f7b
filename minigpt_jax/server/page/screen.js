// Shows the document that the address names.
import { generate, showText } from "./completion.js";
import { retry } from "./chat.js";
import { showConversation } from "./conversation.js";
import { $, atEnd, element, plural, scrollToEnd } from "./dom.js";
import { showList } from "./panel.js";
import { canChat, state, view } from "./state.js";
import { load, newDocument, save, savePending, titleOf } from "./storage.js";

export function show() {
  const doc = state.document;
  const chat = doc.kind === "chat";
  document.title = `${doc.touched ? `${titleOf(doc)} · ` : ""}${state.model?.id ?? "miniGPT"}`;
  $("log").hidden = $("ask").hidden = $("system-section").hidden = !chat;
  $("editor").hidden = $("write").hidden = chat;
  if (chat) showConversation(doc);
  else showText(doc);
  showFailure();
  showControls();
}

export function showFailure() {
  const { title, remedy, tooLong } = state.failure ?? {};
  const tryAgain = !state.model ? view.connect : canChat() ? () => retry(state.document) : generate;
  const buttons = element(
    "div",
    { class: "row" },
    element("button", { type: "button", click: tryAgain }, "Try again"),
  );
  if (tooLong)
    buttons.append(
      element("a", { class: "button", href: "#" }, canChat() ? "New conversation" : "New text"),
    );
  $("failure").replaceChildren(
    ...(title
      ? [element("div", { class: "notice" }, element("b", {}, title), remedy, buttons)]
      : []),
  );
}

export function showControls() {
  const busy = Boolean(state.generation);
  const doc = state.document;
  const total = doc.kind === "chat" && doc.messages.at(-1)?.total;
  $("send").hidden = $("generate").hidden = busy;
  $("stop").hidden = $("stop-text").hidden = !busy;
  $("send").disabled = $("generate").disabled = !state.model;
  $("undo").disabled = busy || !doc.marks?.length;
  $("generate").textContent = doc.marks?.length ? "Continue" : "Generate";
  $("usage").textContent =
    total && state.model
      ? `${total} of ${plural(state.model.context, "token")} of context used`
      : "";
  $("latest").hidden = atEnd();
}

/** Shows the document that the address names, or a new one. A running generation is stopped. */
export function route() {
  const id = location.hash.slice(1);
  if (id && id === state.document?.id) return;
  stopAndSave();
  const blocks = load(id);
  state.failure = null;
  state.document = blocks?.kind === (canChat() ? "chat" : "text") ? blocks : newDocument();
  if (!blocks) history.replaceState(null, "", location.pathname);
  show();
  showList();
  scrollToEnd();
  if (matchMedia("(hover: hover)").matches && !$("page").inert)
    (canChat() ? $("message") : $("text")).focus();
}

/** Before another document, or none, is shown. */
export function stopAndSave() {
  state.generation?.controller.abort();
  if (state.generation) save(state.document);
  savePending();
}
