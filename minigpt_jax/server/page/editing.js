// The form in which a user changes a question.
import { askAnew } from "./chat.js";
import { $, element, fitHeight, isSendKey, plural } from "./dom.js";
import { state, view } from "./state.js";

/** Opens the form in the place of message `index`. `content` is what it has at first. */
export function edit(doc, index, content = doc.messages[index].content) {
  if (state.generation) return;
  const after = doc.messages.length - index - 1;
  const field = element("textarea", { rows: 3, "aria-label": "Message" });
  const close = () => {
    view.show();
    $("message").focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const changed = field.value.trim();
    if (!changed || state.generation) return;
    const accepted = await askAnew(doc, index, changed);
    if (!accepted && doc === state.document) edit(doc, index, changed);
  };
  field.value = content;
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
