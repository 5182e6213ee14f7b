// Conversations and texts in the browser's storage: one key for each, so that two tabs do not
// overwrite each other's. Keys do not name the path of the page, so servers that share an address
// share them.
import { toast } from "./feedback.js";
import { canChat, state, view } from "./state.js";
import { allKeys, read, readOfTab, remove, write, writeOfTab } from "./store.js";
import { isDocument } from "./stored_format.js";
import { storedSettings } from "./stored_settings.js";

export const PREFIX = "minigpt.document.";
// What is in the text field of a conversation and not sent. Kept apart from the conversation,
// whose revision it must not change.
const DRAFT = "minigpt.draft.";
// {draft, system} of the conversation that has not begun; each tab has its own.
const NEW = "minigpt.new";

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) =>
    byte.toString(36).padStart(2, "0"),
  ).join("");

export function newDocument() {
  const common = { id: newId(), revision: "", touched: 0 };
  return canChat()
    ? { ...common, kind: "chat", system: newOfTab().system ?? defaultSystem(), messages: [] }
    : { ...common, kind: "text", text: "", marks: [] };
}

/** The system prompt of new conversations. */
export function defaultSystem() {
  const { system } = storedSettings();
  return typeof system === "string" ? system : "";
}

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
  const isNew = !doc.revision;
  doc.revision = newId();
  // It has begun, so the next new one is empty.
  if (isNew && doc.kind === "chat") {
    const { draft } = newOfTab();
    writeOfTab(NEW, null);
    if (draft) keepDraft(doc, draft);
  }
  write(PREFIX + doc.id, JSON.stringify(doc));
  if (doc === state.document) history.replaceState(null, "", `#${doc.id}`);
}

/** Stores a document of another browser as a new one. Returns whether there was room for it. */
export function add(doc) {
  return write(PREFIX + newId(), JSON.stringify({ ...doc, revision: newId() }));
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
  keepSystem(doc);
  if (doc === state.document) history.replaceState(null, "", location.pathname);
}

export function documents() {
  return allKeys()
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => load(key.slice(PREFIX.length)))
    .filter((doc) => doc?.kind === state.kind)
    .sort((a, b) => b.touched - a.touched);
}

export function titleOf(doc) {
  const firstText =
    doc.kind === "chat"
      ? doc.messages.find((message) => message.role === "user")?.content
      : doc.text;
  return doc.title || firstText?.trim().slice(0, 80).split("\n")[0] || "Untitled";
}

function newOfTab() {
  try {
    return JSON.parse(readOfTab(NEW)) ?? {};
  } catch {
    return {};
  }
}

const changeNew = (changes) => writeOfTab(NEW, JSON.stringify({ ...newOfTab(), ...changes }));

/** Keeps the system prompt of a conversation that has not begun, unless it is the default. */
export function keepSystem({ system }) {
  changeNew({ system: system === defaultSystem() ? undefined : system });
}

export const draftOf = (doc) =>
  (doc.revision ? read(DRAFT + doc.id) : newOfTab().draft) || "";

export function keepDraft(doc, text) {
  if (!doc.revision) changeNew({ draft: text });
  else if (text) write(DRAFT + doc.id, text);
  else remove(DRAFT + doc.id);
}

/** Keeps what was being written in a conversation that another tab has deleted. */
export function keepAsNew(text) {
  changeNew({ draft: [newOfTab().draft, text].filter(Boolean).join("\n\n") });
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
