// Export to files, and import from files that this page exported.
import { $, element, plural } from "./dom.js";
import { add, documents, isDocument, titleOf } from "./documents.js";
import { toast } from "./feedback.js";
import { canChat, view } from "./state.js";

const FORMAT = "minigpt-documents";

const noun = () => (canChat() ? "conversation" : "text");

/** One or more documents in the format that can be imported. */
function exported(docs) {
  // Without what an edit replaced, which the user no longer sees.
  const contents = docs.map(({ id, revision, replaced, ...content }) => content);
  return `${JSON.stringify({ format: FORMAT, version: 1, documents: contents }, null, 1)}\n`;
}

export function exportOne(doc) {
  download(`${fileName(doc)}.json`, "application/json", exported([doc]));
}

export function exportAll() {
  download(`${noun()}s.json`, "application/json", exported(documents()));
}

/** A conversation as Markdown, or a text as it is. */
export function exportText(doc) {
  if (doc.kind === "chat") download(`${fileName(doc)}.md`, "text/markdown", markdownOf(doc));
  else download(`${fileName(doc)}.txt`, "text/plain", doc.text);
}

function markdownOf(doc) {
  const system = doc.system.trim() ? [`*System prompt:* ${doc.system.trim()}`] : [];
  const turns = doc.messages.flatMap(({ role, content, model }) => [
    role === "user" ? "## Question" : `## Answer${model ? ` of ${model}` : ""}`,
    content.trim(),
  ]);
  return `${[`# ${titleOf(doc)}`, ...system, ...turns].join("\n\n")}\n`;
}

function fileName(doc) {
  const words = titleOf(doc).normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-");
  return words.replace(/^-|-$/g, "").slice(0, 60).toLowerCase() || noun();
}

function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

/** Adds the documents of a file that the user has chosen. Nothing that is stored is replaced. */
export async function importFile() {
  const [file] = $("import-file").files;
  if (!file) return;
  const docs = documentsIn(await file.text());
  // The same file can be chosen again.
  $("import-file").value = "";
  if (!docs) {
    toast(`${file.name} was not imported: expected a JSON file that this page has exported.`);
    return;
  }
  docs.forEach(add);
  view.showList();
  const kind = canChat() ? "chat" : "text";
  const other = docs.filter((doc) => doc.kind !== kind).length;
  const hidden = other ? ` ${other} of them are listed when another kind of model answers.` : "";
  toast(`Imported ${plural(docs.length, other ? "document" : noun())}.${hidden}`);
}

function documentsIn(text) {
  try {
    const { format, documents: docs } = JSON.parse(text);
    return format === FORMAT && docs.length && docs.every(isDocument) ? docs : null;
  } catch {
    return null;
  }
}
