// The side panel: the list of stored conversations or texts, and what can be done with each.
import { $, element, iconButton, plural } from "./dom.js";
import { discard, documents, load, save, titleOf } from "./documents.js";
import { toast } from "./feedback.js";
import { placeBelow } from "./popover.js";
import { canChat, noun, state, view } from "./state.js";
import { exportOne, exportText } from "./transfer.js";

export function showList() {
  const docs = documents();
  const none = element("p", { class: "muted" }, `No ${noun()}s yet.`);
  $("delete-all").hidden = $("export-all").hidden = !docs.length;
  $("list").replaceChildren(...(docs.length ? docs.map(entryOf) : [element("li", {}, none)]));
}

function entryOf(doc) {
  const link = element(
    "a",
    {
      href: `#${doc.id}`,
      title: titleOf(doc),
      "aria-current": doc.id === state.document.id && "page",
      click: closePanel,
    },
    titleOf(doc),
  );
  const button = iconButton("more", `Options of ${titleOf(doc)}`, () => openOptions(doc, button));
  button.title = "Options";
  button.setAttribute("aria-expanded", "false");
  return element("li", {}, link, button);
}

/** The menu of one entry. Tab and the arrow keys move in it, Escape closes it. */
function openOptions({ id }, button) {
  const item = (label, action) => {
    const click = () => {
      $("options").hidePopover();
      const doc = current(id);
      if (doc) action(doc);
    };
    return element("button", { type: "button", click }, label);
  };
  $("options").replaceChildren(
    item("Rename", rename),
    item(canChat() ? "Export as Markdown" : "Export as text", exportText),
    item("Export as JSON", exportOne),
    item("Delete", deleteDocument),
  );
  $("options").lastChild.classList.add("bad");
  button.setAttribute("aria-expanded", "true");
  $("options").showPopover();
  placeBelow($("options"), button.getBoundingClientRect());
  $("options").firstChild.focus();
}

export function onOptionsToggle({ newState }) {
  const opener = $("list").querySelector("[aria-expanded=true]");
  if (newState === "closed") opener?.setAttribute("aria-expanded", "false");
}

export function onOptionsKey(event) {
  const items = [...$("options").children];
  const at = items.indexOf(document.activeElement);
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  items.at((at + steps[event.key]) % items.length).focus();
}

/** The document as it is on the screen, or else as it is stored. */
const current = (id) => (id === state.document.id ? state.document : load(id));

async function rename({ id }) {
  $("new-title").value = titleOf(current(id));
  $("new-title").select();
  if ((await answerOf($("rename"))) !== "yes") return;
  // Another tab may have changed or deleted it meanwhile.
  const doc = current(id);
  if (!doc) return;
  // Without a title of its own it is called by its first text.
  const title = $("new-title").value.trim();
  doc.title = title || undefined;
  save(doc);
  if (doc === state.document) view.show();
  showList();
  $("list").querySelector(`[href="#${doc.id}"]`)?.focus();
}

function deleteDocument({ id }) {
  const restore = discard(id);
  const wasShown = id === state.document.id;
  if (wasShown) location.hash = "";
  showList();
  $("new").focus();
  toast("Deleted.", () => {
    restore();
    if (wasShown) location.hash = id;
    showList();
  });
}

export async function deleteAll() {
  const docs = documents();
  const what = plural(docs.length, noun());
  $("confirm-title").textContent = `Delete ${what}?`;
  $("confirm-text").textContent = "This cannot be undone.";
  if ((await answerOf($("confirm"))) !== "yes") return;
  docs.forEach((doc) => discard(doc.id));
  $("toast").hidden = true;
  location.hash = "";
  showList();
  $("new").focus();
}

/** What the user answers in a dialog: the value of a button, or "". */
async function answerOf(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  return dialog.returnValue;
}

export function openPanel() {
  document.body.classList.add("panel-open");
  $("menu").setAttribute("aria-expanded", "true");
  $("page").inert = true;
  $("close-panel").focus();
}

export function closePanel() {
  if (!$("page").inert) return;
  document.body.classList.remove("panel-open");
  $("menu").setAttribute("aria-expanded", "false");
  $("page").inert = false;
  $("menu").focus();
}
