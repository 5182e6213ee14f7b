// Short messages to the user: for screen readers, on a button, and at the edge of the page.
import { $, element, icon } from "./dom.js";
import { state } from "./state.js";

export const announce = (text) => {
  $("announcement").textContent = text;
};

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain http, browsers offer only this way.
    const field = element("textarea", { class: "visually-hidden" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  announce("Copied");
  const before = [...button.childNodes];
  if (button.dataset.copied) return;
  button.dataset.copied = "yes";
  button.replaceChildren(button.matches(".icon") ? icon("check") : "Copied");
  setTimeout(() => {
    button.replaceChildren(...before);
    delete button.dataset.copied;
  }, 1500);
}

export function toast(text, onUndo = null) {
  const close = () => {
    $("toast").hidden = true;
  };
  const label = onUndo ? "Undo" : "Close";
  $("toast").replaceChildren(
    element("p", {}, text),
    element(
      "button",
      {
        type: "button",
        click: () => {
          close();
          onUndo?.();
        },
      },
      label,
    ),
  );
  $("toast").hidden = false;
  clearTimeout(state.toastTimer);
  const later = () => {
    if ($("toast").matches(":hover, :focus-within")) state.toastTimer = setTimeout(later, 2000);
    else close();
  };
  state.toastTimer = setTimeout(later, 10000);
}
