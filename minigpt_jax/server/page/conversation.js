// Shows a conversation as elements, with a row of buttons for each message.
import { ask, chooseVersion, deleteMessage, rememberAll, retry, undoEdit } from "./chat.js";
import { $, element, iconButton } from "./dom.js";
import { save } from "./documents.js";
import { edit, formOf } from "./editing.js";
import { copy } from "./feedback.js";
import { introduction } from "./introduction.js";
import { incrementalRenderer } from "./markdown.js";
import { noteOf, waitingNote } from "./notes.js";
import { tokensNode } from "./probabilities.js";
import { state, view } from "./state.js";
import { indexOf, versionsOf } from "./versions.js";

export function showConversation(doc) {
  const focused = document.activeElement;
  const entries = doc.messages.map((message, index) => messageNode(doc, message, index));
  const forgotten = doc.messages.findLastIndex((message) => message.forgotten);
  if (forgotten >= 0) entries.splice(forgotten + 1, 0, forgottenNode(doc));
  if (doc.system.trim()) {
    const text = `System prompt: ${doc.system.trim().slice(0, 120)}`;
    entries.unshift(element("li", { class: "system muted" }, text));
  }
  if (!doc.messages.length) entries.push(emptyNode());
  if (doc.replaced && !state.generation) entries.push(replacedNode(doc));
  $("log").replaceChildren(...entries);
  // The field of an edit loses the focus on its way into a new form.
  if (focused.isConnected) focused.focus({ preventScroll: true });
  $("system").value = doc.system;
}

function emptyNode() {
  return element("li", { class: "empty" }, ...introduction("Ask something", ask));
}

function forgottenNode(doc) {
  const restore = () => rememberAll(doc);
  return element(
    "li",
    { class: "forgotten-line" },
    element("span", {}, "The model no longer sees what is above"),
    element("button", { type: "button", class: "quiet", click: restore }, "Bring back"),
  );
}

function replacedNode(doc) {
  const undo = () => undoEdit(doc);
  return element(
    "li",
    { class: "forgotten-line" },
    element("span", {}, "The edited message replaced what followed it"),
    element("button", { type: "button", class: "quiet", click: undo }, "Undo"),
  );
}

function messageNode(doc, message, index) {
  const isUser = message.role === "user";
  const author = isUser ? "You" : (message.model ?? state.model?.id ?? "Model");
  const attributes = {
    class: `message ${message.role}${message.forgotten ? " forgotten" : ""}`,
  };
  const heading = element("h2", { class: "visually-hidden" }, author);
  if (state.edits.has(message)) return element("li", attributes, formOf(doc, message));
  if (isUser) {
    const text = element("div", { class: "text" }, message.content);
    return element("li", attributes, heading, text, footOf(doc, message, index));
  }
  if (message.beside) return element("li", attributes, heading, columnsOf(doc, message, index));
  const foot = isGrowing(message) ? element("div", { class: "foot" }) : footOf(doc, message, index);
  return element("li", attributes, heading, answerNode(message), foot);
}

const isGrowing = (version) => Boolean(state.generation?.targets.has(version));

/** The text of an answer. While a model writes it, the generation's renderer shows what arrives. */
function answerNode(version) {
  if (version.tokenList && !version.plain && !isGrowing(version))
    return tokensNode(version.tokenList);
  const body = element("div", { class: "markdown" });
  const render = incrementalRenderer(body);
  render(version.content);
  if (!isGrowing(version)) return body;
  const { renderers, waiting } = state.generation;
  const note = element("span", { class: "muted" });
  const node = element("div", {}, note, body);
  const show = () => {
    node.classList.toggle("waiting", !version.content);
    note.textContent = waitingNote(waiting.get(version));
    if (version.content) render(version.content);
  };
  renderers.set(version, show);
  show();
  return node;
}

/** Two answers beside each other, of which the user chooses one. */
function columnsOf(doc, message, index) {
  const first = indexOf(message);
  const columns = [message, message.after.at(-1)].map((version, i) => {
    const choose = () => {
      chooseVersion(doc, index, first + i);
      $("message").focus();
    };
    const parts = isGrowing(version)
      ? []
      : [
          element("p", { class: "muted" }, noteOf({ ...version, model: "" })),
          element("button", { type: "button", click: choose }, "Go on with this answer"),
        ];
    if (state.generation) parts.splice(1);
    return element(
      "section",
      { "aria-label": `Answer of ${version.model}` },
      element("h3", {}, version.model),
      answerNode(version),
      ...parts,
    );
  });
  return element("div", { class: "columns" }, ...columns);
}

function footOf(doc, message, index) {
  const isUser = message.role === "user";
  const isLast = index === doc.messages.length - 1;
  const parts = isUser ? [] : [...versionButtons(doc, message, index), noteNode(message)];
  if (message.tokenList) parts.push(tokensButton(doc, message));
  parts.push(iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget)));
  if (isUser) parts.push(iconButton("edit", "Edit", () => edit(doc, message)));
  if (isLast && doc.messages.some(({ role }) => role === "user"))
    parts.push(iconButton("retry", isUser ? "Get an answer" : "Retry", () => retry(doc)));
  parts.push(iconButton("trash", "Delete", () => deleteMessage(doc, index)));
  return element("div", { class: "foot" }, ...parts);
}

function noteNode(message) {
  const note = noteOf(message);
  return note ? element("span", { class: "muted" }, note) : "";
}

function versionButtons(doc, message, index) {
  const number = versionsOf(message).length;
  if (number === 1) return [];
  const at = indexOf(message);
  const button = (name, label, to) => {
    const node = iconButton(name, label, () => {
      chooseVersion(doc, index, to);
      // The buttons are new ones: the keyboard stays where it was.
      const shown = $("log").querySelectorAll(".message")[index];
      shown.querySelector(`[aria-label="${label}"]:enabled, .versions :enabled`).focus();
    });
    node.disabled = to < 0 || to >= number;
    return node;
  };
  return [
    element(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions of this answer" },
      button("left", "Previous version", at - 1),
      element("span", {}, `${at + 1}/${number}`),
      button("right", "Next version", at + 1),
    ),
  ];
}

function tokensButton(doc, message) {
  const label = message.plain ? "Show token probabilities" : "Show as text";
  return iconButton("bars", label, () => {
    message.plain = !message.plain;
    save(doc);
    view.show();
  });
}
