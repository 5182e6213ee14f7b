// The page of a model that was not finetuned: it continues a text.
import { $, element, scrollToEnd } from "./dom.js";
import { announce } from "./feedback.js";
import { noteOf } from "./notes.js";
import { streamText } from "./generation.js";
import { state, view } from "./state.js";
import { save, saveSoon } from "./storage.js";

const DEFAULT_MAX_TOKENS = 64;

/** [from, to, length]: `before` from `from` to `to` became `length` characters of `after`. */
function changeBetween(before, after) {
  const shorter = Math.min(before.length, after.length);
  let from = 0;
  while (from < shorter && before[from] === after[from]) from++;
  let same = 0;
  while (same < shorter - from && before.at(-1 - same) === after.at(-1 - same)) same++;
  return [from, before.length - same, after.length - same - from];
}

/**
 * Marks are [start, end, round]: parts that the model generated. A change moves them, and typed
 * text is cut out of them.
 */
function shiftMarks(marks, from, to, length) {
  const moved = length - (to - from);
  return marks
    .flatMap(([start, end, round]) => [
      [start, Math.min(end, from), round],
      [Math.max(start, to) + moved, end + moved, round],
    ])
    .filter(([start, end]) => start < end);
}

export function showText(doc) {
  if ($("text").value !== doc.text) $("text").value = doc.text;
  const parts = [];
  let at = 0;
  for (const [start, end] of doc.marks.toSorted((a, b) => a[0] - b[0])) {
    parts.push(doc.text.slice(at, start), element("mark", {}, doc.text.slice(start, end)));
    at = end;
  }
  // Without the line break, an empty last line would have no height.
  $("copy-of-text").replaceChildren(...parts, doc.text.slice(at), "\n");
}

export async function generate() {
  const doc = state.document;
  if (state.generation || !state.model) return;
  const field = $("text");
  const start = doc.text.length;
  const mark = [start, start, 1 + Math.max(0, ...doc.marks.map(([, , round]) => round))];
  const firstText = document.createTextNode("");
  let shown = start;
  const addText = (part) => {
    // A text field removes them, and the positions of marks would be wrong.
    doc.text += part.replaceAll("\r", "");
    mark[1] = doc.text.length;
  };
  const generation = streamText({
    doc,
    addText,
    path: "v1/completions",
    body: { prompt: doc.text, max_tokens: DEFAULT_MAX_TOKENS },
  });
  state.generation.render = () => {
    firstText.appendData(doc.text.slice(shown));
    field.setRangeText(doc.text.slice(shown), shown, shown, "preserve");
    shown = doc.text.length;
  };
  doc.touched = Date.now();
  field.readOnly = true;
  save(doc);
  view.show();
  view.showList();
  $("copy-of-text").lastChild.before(element("mark", {}, firstText));
  doc.marks.push(mark);
  const { end, tokens, seconds } = await generation;
  field.readOnly = false;
  doc.marks = doc.marks.filter(([from, to]) => from < to);
  save(doc);
  view.showList();
  if (doc !== state.document) return view.showControls();
  view.show();
  const written = doc.text.slice(start);
  $("usage").textContent =
    written && noteOf({ role: "assistant", content: written, end, tokens, seconds });
  if (end === "lost") scrollToEnd();
  announce({ lost: "", stopped: "Stopped" }[end] ?? `Generated: ${written}`);
}

export function undo() {
  const doc = state.document;
  const last = Math.max(...doc.marks.map((mark) => mark[2]));
  for (const [start, end] of doc.marks
    .filter((mark) => mark[2] === last)
    .sort((a, b) => b[0] - a[0])) {
    doc.text = doc.text.slice(0, start) + doc.text.slice(end);
    doc.marks = shiftMarks(doc.marks, start, end, 0);
  }
  save(doc);
  view.show();
  $("text").focus();
}

export function onText() {
  const doc = state.document;
  doc.marks = shiftMarks(doc.marks, ...changeBetween(doc.text, $("text").value));
  doc.text = $("text").value;
  doc.touched = Date.now();
  showText(doc);
  view.showControls();
  saveSoon();
}
