// Export to files, and import from files that this page exported.
import { $, element, plural } from "./dom.js";
import { add, documents, titleOf } from "./documents.js";
import { toast } from "./feedback.js";
import { canChat, noun, state, view } from "./state.js";
import { isDocument } from "./stored_format.js";

const FORMAT = "minigpt-documents";
const VERSION = 1;
// More than any browser stores for a page.
const MAX_BYTES = 50e6;

/** One or more documents in the format that can be imported. */
function exported(docs) {
  // Without what an edit replaced, which the user no longer sees.
  const contents = docs.map(({ id, revision, replaced, ...content }) => content);
  return `${JSON.stringify({ format: FORMAT, version: VERSION, documents: contents }, null, 1)}\n`;
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
  const { docs, problem } = await documentsIn(file);
  // The same file can be chosen again.
  $("import-file").value = "";
  if (problem) return toast(`${file.name} was not imported: ${problem}.`);
  const lost = docs.filter((doc) => !add(doc)).length;
  view.showList();
  const hidden = hiddenOf(docs);
  const number = plural(docs.length, hidden ? "document" : noun());
  toast(`Imported ${number}.${hidden}${lostOf(lost)}`);
}

/** Which documents the list does not show now. */
function hiddenOf(docs) {
  const other = docs.filter(({ kind }) => kind !== state.kind).length;
  if (!other) return "";
  const [one, model] = canChat() ? ["text", "completion"] : ["conversation", "chat"];
  const [are, they] = other === 1 ? [`is a ${one}`, "it is"] : [`are ${one}s`, "they are"];
  return ` ${other} ${are}: ${they} listed when a ${model} model answers.`;
}

const lostOf = (lost) =>
  lost ? ` The browser's storage has no room for ${lost}: lost when you reload the page.` : "";

/** {docs}, or {problem} if the file cannot be imported as a whole. */
async function documentsIn(file) {
  const problem = "expected a JSON file that this page has exported";
  if (file.size > MAX_BYTES)
    return { problem: `it is larger than ${MAX_BYTES / 1e6} MB, more than a browser stores` };
  try {
    const { format, version, documents: docs } = JSON.parse(await file.text());
    if (format !== FORMAT || !Number.isInteger(version)) return { problem };
    if (version !== VERSION) {
      const versions = `version ${version}, this page reads ${VERSION}`;
      return { problem: `a newer miniGPT-JAX wrote it (${versions}): update the server` };
    }
    const bad = docs.findIndex((doc) => !isDocument(doc));
    if (bad >= 0) return { problem: `document ${bad + 1} of ${docs.length} is damaged` };
    return docs.length ? { docs } : { problem: "it has no documents" };
  } catch {
    return { problem };
  }
}
