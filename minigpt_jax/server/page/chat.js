// What a user does in a conversation: ask, retry, edit, delete.
import { $, atEnd, element, fitHeight, isSendKey, plural, scrollToEnd } from "./dom.js";
import { announce, toast } from "./feedback.js";
import { streamText } from "./generation.js";
import { state, view } from "./state.js";
import { save } from "./storage.js";

/**
 * The messages for the server. Roles must alternate and begin with the user, so neighbours of one
 * role are joined, and answers before the first question are left out.
 */
function turnsOf(doc) {
  const turns = doc.system.trim() ? [{ role: "system", content: doc.system }] : [];
  for (const { role, content } of doc.messages.filter((message) => message.content.trim())) {
    const last = turns.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else if (role === "user" || last?.role === "user") turns.push({ role, content });
  }
  return turns;
}

async function answer(doc, before = []) {
  const message = { role: "assistant", content: "", end: "writing" };
  const messages = turnsOf(doc);
  doc.messages.push(message);
  doc.touched = Date.now();
  const addText = (part) => {
    message.content += part;
  };
  const generation = streamText({
    doc,
    message,
    addText,
    path: "v1/chat/completions",
    body: { messages },
  });
  save(doc);
  view.show();
  view.showList();
  scrollToEnd();
  const { end } = Object.assign(message, await generation);
  if (!message.content && ["lost", "stopped"].includes(end)) doc.messages.splice(-1, 1, ...before);
  save(doc);
  if (doc !== state.document) return view.showControls();
  const follow = atEnd();
  view.show();
  if (follow) scrollToEnd();
  view.showControls();
  announce({ lost: "", stopped: "Stopped" }[end] ?? `Answer: ${message.content}`);
}

export function send() {
  const doc = state.document;
  const content = $("message").value.trim();
  if (!content || state.generation || !state.model) return;
  $("message").value = "";
  fitHeight($("message"));
  $("message").focus();
  doc.messages.push({ role: "user", content });
  answer(doc);
}

export function retry(doc) {
  if (state.generation) return;
  const asked = doc.messages.findLastIndex((message) => message.role === "user");
  answer(doc, doc.messages.splice(asked + 1));
  $("message").focus();
}

export function edit(doc, index) {
  if (state.generation) return;
  const after = doc.messages.length - index - 1;
  const field = element("textarea", { rows: 3, "aria-label": "Message" });
  const close = () => {
    view.show();
    $("message").focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const content = field.value.trim();
    if (!content || state.generation) return;
    const before = doc.messages;
    doc.messages = [...before.slice(0, index), { role: "user", content }];
    $("message").focus();
    await answer(doc);
    if (after && !state.generation)
      toast("The message and those after it were replaced.", () => replaceMessages(doc, before));
  };
  field.value = doc.messages[index].content;
  const form = element(
    "form",
    { submit },
    field,
    element(
      "div",
      { class: "row" },
      element("button", { class: "primary" }, "Send"),
      element("button", { type: "button", click: close }, "Cancel"),
      element(
        "span",
        { class: "muted" },
        after
          ? `Sending removes the ${plural(after, "message")} that follow${after === 1 ? "s" : ""}.`
          : "",
      ),
    ),
  );
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (isSendKey(event)) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  $("log").querySelectorAll(".message")[index].replaceChildren(form);
  fitHeight(field);
  field.focus();
}

export function deleteMessage(doc, index) {
  if (state.generation) return;
  const before = doc.messages;
  replaceMessages(
    doc,
    before.filter((_, i) => i !== index),
  );
  toast("Message deleted.", () => replaceMessages(doc, before));
  $("message").focus();
}

function replaceMessages(doc, messages) {
  doc.messages = messages;
  state.failure = null;
  save(doc);
  if (doc === state.document) view.show();
  view.showList();
}
