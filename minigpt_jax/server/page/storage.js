// Documents in the browser's storage: one key for each, so that two tabs do not overwrite each
// other's.
import { toast } from "./feedback.js";
import { canChat, state, view } from "./state.js";

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) =>
    byte.toString(36).padStart(2, "0"),
  ).join("");

export const PREFIX = "minigpt.document.";
// What the browser refused to store, because the storage is full or disabled. Lost with the page.
const unstored = new Map();

export function read(key) {
  if (unstored.has(key)) return unstored.get(key);
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function write(key, value) {
  try {
    localStorage.setItem(key, value);
    unstored.delete(key);
  } catch {
    if (!unstored.size)
      toast("The browser's storage is full or disabled: this is lost when you reload the page.");
    unstored.set(key, value);
  }
}

export function remove(key) {
  unstored.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // Storage is disabled, so nothing was stored.
  }
}

export function newDocument() {
  const common = { id: newId(), revision: "", touched: 0 };
  return canChat()
    ? { ...common, kind: "chat", system: "", messages: [] }
    : { ...common, kind: "text", text: "", marks: [] };
}

const isMessage = (m) => ["user", "assistant"].includes(m?.role) && typeof m.content === "string";
const isMark = (m) => Array.isArray(m) && m.length === 3 && m.every(Number.isInteger);

export function load(id) {
  try {
    const stored = JSON.parse(read(PREFIX + id));
    const isValid =
      stored.kind === "chat"
        ? typeof stored.system === "string" && stored.messages.every(isMessage)
        : typeof stored.text === "string" && stored.marks.every(isMark);
    return isValid ? { ...stored, id } : null;
  } catch {
    // No such document, or damaged.
    return null;
  }
}

export function save(doc) {
  const stored = load(doc.id);
  // Deleted in another tab.
  if (doc.revision && !stored) return;
  if (stored && stored.revision !== doc.revision) {
    doc.id = newId();
    toast("This was also changed in another tab: both versions are kept.");
  }
  doc.revision = newId();
  write(PREFIX + doc.id, JSON.stringify(doc));
  if (doc === state.document) history.replaceState(null, "", `#${doc.id}`);
}

export function documents() {
  let keys = [];
  try {
    keys = Object.keys(localStorage);
  } catch {
    // Storage is disabled.
  }
  const ids = [...new Set([...keys, ...unstored.keys()])]
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => key.slice(PREFIX.length));
  const kind = canChat() ? "chat" : "text";
  return ids
    .map(load)
    .filter((doc) => doc?.kind === kind)
    .sort((a, b) => b.touched - a.touched);
}

export function titleOf(doc) {
  const firstText =
    doc.kind === "chat"
      ? doc.messages.find((message) => message.role === "user")?.content
      : doc.text;
  return firstText?.trim().slice(0, 80).split("\n")[0] || "Untitled";
}

export function saveSoon() {
  clearTimeout(state.saveTimer);
  state.saveTimer = setTimeout(() => {
    savePending();
    view.showList();
  }, 300);
}

export function savePending() {
  if (!state.saveTimer) return;
  clearTimeout(state.saveTimer);
  state.saveTimer = null;
  save(state.document);
}
