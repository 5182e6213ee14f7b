// Shows the document that the address names.
import { cutAnswer, fillField, forgetAndAsk, questionOf, retry } from "./chat.js";
import { generate, showText, waitingOf } from "./completion.js";
import { showConversation } from "./conversation.js";
import { draftOf, load, newDocument, save, savePending, titleOf } from "./documents.js";
import { $, atEnd, element, plural, scrollToEnd } from "./dom.js";
import { canForget } from "./forgetting.js";
import { showList } from "./panel.js";
import { hideTip } from "./probabilities.js";
import { canChat, clearFailure, modelOf, state, view } from "./state.js";

export function show() {
  const doc = state.document;
  const chat = doc.kind === "chat";
  document.title = `${doc.touched ? `${titleOf(doc)} · ` : ""}${state.model?.id ?? "miniGPT"}`;
  $("log").hidden = $("ask").hidden = $("system-section").hidden = !chat;
  $("new-system-section").hidden = !chat;
  $("editor").hidden = $("write").hidden = $("below-text").hidden = chat;
  hideTip();
  if (chat) showConversation(doc);
  else showText(doc);
  showFailure();
  showControls();
}

const failureOf = (doc) => state.failure ?? (doc.kind === "chat" ? cutAnswer(doc) : null);

/** What went wrong, and the buttons that can help. They act on what is shown when they are used. */
export function showFailure() {
  const doc = state.document;
  const failure = failureOf(doc);
  if (!failure) return $("failure").replaceChildren();
  const button = (label, click, attributes = {}) =>
    element("button", { type: "button", click, ...attributes }, label);
  const buttons = [];
  let { remedy } = failure;
  if (failure.tooLong) {
    const forget = () => forgetAndAsk(state.document, failureOf(state.document));
    if (doc.kind === "chat" && canForget(doc, questionOf(doc, failure).index)) {
      remedy = "The model can forget the oldest turns and answer. They stay on this page.";
      buttons.push(button("Forget the oldest turns", forget, { class: "primary" }));
    }
    const label = doc.kind === "chat" ? "New conversation" : "New text";
    buttons.push(element("a", { class: "button", href: "#" }, label));
  } else if (!failure.refused) {
    const ask = () => (state.document.kind === "chat" ? retry(state.document) : generate());
    buttons.push(button("Try again", () => (state.model ? ask() : view.connect())));
  }
  const row = buttons.length ? element("div", { class: "row" }, ...buttons) : "";
  const notice = element(
    "div",
    { class: "notice", role: "alert" },
    element("b", {}, failure.title),
    remedy,
    row,
  );
  // The same notice stays: screen readers would read a new one again.
  if ($("failure").textContent !== notice.textContent) $("failure").replaceChildren(notice);
}

const NEXT_FOCUS = { generate: "stop-text", "stop-text": "generate", stop: "message" };

export function showControls() {
  const busy = Boolean(state.generation);
  const doc = state.document;
  const focused = document.activeElement;
  $("send").hidden = $("generate").hidden = busy;
  $("stop").hidden = $("stop-text").hidden = !busy;
  // A button that is hidden loses the focus.
  if (focused.hidden) $(NEXT_FOCUS[focused.id])?.focus();
  $("send").disabled = $("generate").disabled = !state.model;
  $("undo").disabled = busy || !doc.marks?.length;
  $("generate").textContent = doc.marks?.length ? "Continue" : "Generate";
  $("usage").textContent = doc.kind === "chat" ? usageOf(doc.messages.at(-1)) : waitingOf(doc);
  $("latest").hidden = atEnd();
}

/** How much of the context the last answer filled. */
function usageOf(last) {
  const model = modelOf(last);
  return last?.total && model
    ? `${last.total} of ${plural(model.context, "token")} of context used`
    : "";
}

/** Shows the document that the address names, or a new one. A running generation is stopped. */
export function route() {
  const id = location.hash.slice(1);
  if (id && id === state.document?.id) return;
  stopAndSave();
  const stored = load(id);
  clearFailure();
  state.edits.clear();
  state.document = stored?.kind === state.kind ? stored : newDocument();
  if (!stored) history.replaceState(null, "", location.pathname);
  // First, so that the list is there whatever the document has.
  showList();
  show();
  if (canChat()) fillField(draftOf(state.document));
  scrollToEnd();
  if (matchMedia("(hover: hover)").matches && !$("page").inert)
    (canChat() ? $("message") : $("text")).focus();
}

/** Before another document, or none, is shown. */
export function stopAndSave() {
  state.generation?.controller.abort();
  if (state.generation && state.document) save(state.document);
  savePending();
}
