// Conversations and texts in the browser's storage: one key for each, so that two tabs do not
// overwrite each other's. Keys do not name the path of the page, so servers that share an address
// share them.
import { toast } from "./feedback.js";
import { storedSettings } from "./sampling.js";
import { canChat, state, view } from "./state.js";
import { allKeys, read, remove, write } from "./store.js";

export const PREFIX = "minigpt.document.";
// What is in the text field of a conversation and not sent. Kept apart from the conversation,
// whose revision it must not change.
const DRAFT = "minigpt.draft.";

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) =>
    byte.toString(36).padStart(2, "0"),
  ).join("");

export function newDocument() {
  const common = { id: newId(), revision: "", touched: 0 };
  return canChat()
    ? { ...common, kind: "chat", system: defaultSystem(), messages: [] }
    : { ...common, kind: "text", text: "", marks: [] };
}

function defaultSystem() {
  const { system } = storedSettings();
  return typeof system === "string" ? system : "";
}

const isText = (value) => typeof value === "string";
const isListOf = (value, isItem) => Array.isArray(value) && value.every(isItem);
const isVersion = (version) => isText(version?.content);
// The other versions of an answer stand before and after the one that is shown.
const isMessage = (m) =>
  ["user", "assistant"].includes(m?.role) &&
  isVersion(m) &&
  [m.before ?? [], m.after ?? []].every((versions) => isListOf(versions, isVersion));
const isMessages = (value) => isListOf(value, isMessage);
const isMark = (mark) => isListOf(mark, Number.isInteger) && mark.length === 3;

/** Whether `value` is a conversation or a text of any version of this page. */
export const isDocument = (value) =>
  isText(value?.title ?? "") &&
  (value?.kind === "chat"
    ? isText(value.system) && [value.messages, value.replaced ?? []].every(isMessages)
    : isText(value?.text) && isListOf(value.marks, isMark));

export function load(id) {
  try {
    const stored = JSON.parse(read(PREFIX + id));
    return isDocument(stored) ? { ...stored, id } : null;
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

/** Stores a document of another browser as a new one. */
export function add(doc) {
  write(PREFIX + newId(), JSON.stringify({ ...doc, revision: newId() }));
}

/** Removes a document. Returns a function that restores it. */
export function discard(id) {
  const keys = [PREFIX + id, DRAFT + id];
  const values = keys.map(read);
  keys.forEach(remove);
  return () => keys.forEach((key, i) => values[i] !== null && write(key, values[i]));
}

/** Makes a stored document a new one again, after all that it had was refused. */
export function unsave(doc) {
  discard(doc.id);
  doc.revision = "";
  doc.touched = 0;
  if (doc === state.document) history.replaceState(null, "", location.pathname);
}

export function documents() {
  const kind = canChat() ? "chat" : "text";
  return allKeys()
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => load(key.slice(PREFIX.length)))
    .filter((doc) => doc?.kind === kind)
    .sort((a, b) => b.touched - a.touched);
}

export function titleOf(doc) {
  const firstText =
    doc.kind === "chat"
      ? doc.messages.find((message) => message.role === "user")?.content
      : doc.text;
  return doc.title || firstText?.trim().slice(0, 80).split("\n")[0] || "Untitled";
}

const draftKey = (doc) => DRAFT + (doc.revision ? doc.id : "new");
export const draftOf = (doc) => read(draftKey(doc)) ?? "";

export function keepDraft(doc, text) {
  if (text) write(draftKey(doc), text);
  else remove(draftKey(doc));
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
