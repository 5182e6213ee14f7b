// The form in which a user changes a question. It stays open until it is sent or closed, also when
// the conversation is shown again.
import { sendEdit } from "./chat.js";
import { $, element, fitHeight, isSendKey, plural } from "./dom.js";
import { state, view } from "./state.js";

/** Opens the form of a question. */
export function edit(doc, message) {
  if (state.generation) return;
  const field = element("textarea", { rows: 3, "aria-label": "Message" });
  field.value = message.content;
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close(message);
    else if (isSendKey(event)) field.form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  state.edits.set(message, field);
  view.show();
  fitHeight(field);
  field.focus();
}

function close(message) {
  state.edits.delete(message);
  if (state.failure?.returnedTo === message) state.failure = null;
  view.show();
  $("message").focus();
}

/** The form of a question whose field is in `state.edits`. */
export function formOf(doc, message) {
  const field = state.edits.get(message);
  const after = doc.messages.length - doc.messages.indexOf(message) - 1;
  const what = `${plural(after, "message")} that follow${after === 1 ? "s" : ""}`;
  const submit = async (event) => {
    event.preventDefault();
    await sendEdit(doc, message);
    // If it was refused.
    if (field.isConnected) field.focus();
  };
  return element(
    "form",
    { submit },
    field,
    element(
      "div",
      { class: "row" },
      element("button", { class: "primary" }, "Send"),
      element("button", { type: "button", click: () => close(message) }, "Cancel"),
      element("span", { class: "muted" }, after ? `Sending removes the ${what}.` : ""),
    ),
  );
}
