// Shows a conversation as elements, with a row of buttons below each message.
import { deleteMessage, edit, retry } from "./chat.js";
import { $, element, iconButton } from "./dom.js";
import { copy } from "./feedback.js";
import { incrementalRenderer } from "./markdown.js";
import { noteOf } from "./notes.js";
import { state } from "./state.js";

export function showConversation(doc) {
  const entries = doc.messages.map((message, index) => messageNode(doc, message, index));
  if (doc.system.trim())
    entries.unshift(
      element(
        "li",
        { class: "system muted" },
        `System prompt: ${doc.system.trim().slice(0, 120)}`,
      ),
    );
  if (!doc.messages.length) {
    entries.push(
      element(
        "li",
        { class: "empty" },
        element("h2", {}, "Ask something"),
        element("p", {}, "Conversations are stored only in this browser."),
      ),
    );
  }
  $("log").replaceChildren(...entries);
  $("system").value = doc.system;
}

function messageNode(doc, message, index) {
  const isUser = message.role === "user";
  const last = index === doc.messages.length - 1;
  const body = element("div", { class: isUser ? "text" : "markdown" });
  const note = noteOf(message);
  const foot = element("div", { class: "foot" });
  const author = element(
    "h2",
    { class: "visually-hidden" },
    isUser ? "You" : (state.model?.id ?? "Model"),
  );
  const node = element("li", { class: `message ${message.role}` }, author, body, foot);
  const render = isUser
    ? (text) => {
        body.textContent = text;
      }
    : incrementalRenderer(body);
  render(message.content);
  if (message === state.generation?.message) {
    node.classList.toggle("waiting", !message.content);
    state.generation.render = () => {
      node.classList.remove("waiting");
      render(message.content);
    };
    return node;
  }
  if (note) foot.append(element("span", { class: "muted" }, note));
  foot.append(iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget)));
  if (isUser) foot.append(iconButton("edit", "Edit", () => edit(doc, index)));
  if (last && doc.messages.some(({ role }) => role === "user"))
    foot.append(iconButton("retry", isUser ? "Get an answer" : "Retry", () => retry(doc)));
  foot.append(iconButton("trash", "Delete", () => deleteMessage(doc, index)));
  return node;
}
