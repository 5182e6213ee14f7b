// The side panel: the list of stored conversations or texts.
import { $, element, iconButton, plural } from "./dom.js";
import { toast } from "./feedback.js";
import { canChat, state } from "./state.js";
import { documents, PREFIX, read, remove, titleOf, write } from "./storage.js";

export function showList() {
  const entries = documents().map((doc) =>
    element(
      "li",
      {},
      element(
        "a",
        {
          href: `#${doc.id}`,
          "aria-current": doc.id === state.document.id && "page",
          click: closePanel,
        },
        titleOf(doc),
      ),
      iconButton("trash", `Delete ${titleOf(doc)}`, () => deleteDocument(doc.id)),
    ),
  );
  $("delete-all").hidden = !entries.length;
  $("list").replaceChildren(
    ...(entries.length
      ? entries
      : [
          element(
            "li",
            {},
            element("p", { class: "muted" }, `No ${canChat() ? "conversations" : "texts"} yet.`),
          ),
        ]),
  );
}

function deleteDocument(id) {
  const stored = read(PREFIX + id);
  remove(PREFIX + id);
  if (id === state.document.id) location.hash = "";
  showList();
  $("new").focus();
  toast("Deleted.", () => {
    write(PREFIX + id, stored);
    location.hash = id;
    showList();
  });
}

export async function deleteAll() {
  const all = documents();
  const what = plural(all.length, canChat() ? "conversation" : "text");
  $("confirm-title").textContent = `Delete ${what}?`;
  $("confirm-text").textContent = "This cannot be undone.";
  $("confirm").returnValue = "";
  $("confirm").showModal();
  await new Promise((closed) => $("confirm").addEventListener("close", closed, { once: true }));
  if ($("confirm").returnValue !== "yes") return;
  all.forEach((doc) => remove(PREFIX + doc.id));
  $("toast").hidden = true;
  location.hash = "";
  showList();
  $("new").focus();
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
