// The page of a model that was not finetuned: it continues a text.
import { $, element, scrollToEnd } from "./dom.js";
import { save, saveSoon } from "./documents.js";
import { announce } from "./feedback.js";
import { streamTexts } from "./generation.js";
import { introduction } from "./introduction.js";
import { changeBetween, piecesOf, shiftMarks } from "./marks.js";
import { noteOf, waitingNote } from "./notes.js";
import { tokensNode } from "./probabilities.js";
import { probabilityFields, samplingSettings } from "./sampling.js";
import { state, view } from "./state.js";

const DEFAULT_MAX_TOKENS = 64;
// Assumed until a completion has shown the true number.
const CHARACTERS_PER_TOKEN = 3;
// No text has more: what is longer is not worth a request.
const MOST_CHARACTERS_PER_TOKEN = 32;
// A completion must fill this share of the context before its characters per token are used.
const ENOUGH = 0.25;
// This share of the estimate is sent, because it may be too high.
const SAFETY = 0.9;
// This share of a text that was refused is tried next.
const SHORTER = 0.75;

export function showText(doc) {
  if ($("text").value !== doc.text) $("text").value = doc.text;
  const nodes = piecesOf(doc.text, doc.marks, doc.unseen ?? 0).map(({ text, round, isUnseen }) =>
    round
      ? element("mark", { class: isUnseen && "unseen" }, text)
      : isUnseen
        ? element("span", { class: "unseen" }, text)
        : text,
  );
  // Without the line break, an empty last line would have no height.
  $("copy-of-text").replaceChildren(...nodes, "\n");
  const hasTokens = Boolean(doc.tokenList?.length);
  $("editor").classList.toggle("short", !doc.text || hasTokens);
  $("below-text").replaceChildren(
    ...(doc.text ? [] : introduction("The model continues your text", begin)),
    ...(hasTokens
      ? [element("h3", {}, "Tokens of the last part"), tokensNode(doc.tokenList)]
      : []),
  );
  if (state.generation?.targets.has(doc)) appendWhatArrives(doc);
}

/** From now on, what a model writes is added to the text that is shown. */
function appendWhatArrives(doc) {
  let shown = doc.text.length;
  const arrived = document.createTextNode("");
  $("copy-of-text").lastChild.before(element("mark", {}, arrived));
  state.generation.renderers.set(doc, () => {
    $("usage").textContent = waitingOf(doc);
    const part = doc.text.slice(shown);
    if (!part) return;
    arrived.appendData(part);
    $("text").setRangeText(part, shown, shown, "preserve");
    shown += part.length;
  });
}

export const waitingOf = (doc) => waitingNote(state.generation?.waiting.get(doc));

function begin(text) {
  $("text").value = text;
  onText();
  generate();
}

const isSecondHalf = (text, index) => /[\udc00-\udfff]/.test(text.charAt(index));

/** Where the last `characters` of a text begin: at a word, if there is one. */
function startOfLast(text, characters) {
  const cut = Math.max(0, text.length - Math.floor(characters));
  // Some characters are two code units, which stay together.
  const start = isSecondHalf(text, cut) ? cut + 1 : cut;
  const word = start ? text.slice(start).search(/\s\S/) : 0;
  return word > 0 && word < characters / 2 ? start + word + 1 : start;
}

/** Where the part of the text begins that leaves room for an answer. */
function startOfVisible({ text, charactersPerToken }, maxTokens) {
  const { context } = state.model;
  const room = context - Math.min(maxTokens, Math.floor(context / 2));
  const perToken = charactersPerToken ? SAFETY * charactersPerToken : MOST_CHARACTERS_PER_TOKEN;
  const fits = room * perToken;
  return text.length <= fits ? 0 : startOfLast(text, fits);
}

export async function generate() {
  const doc = state.document;
  if (state.generation || !state.model) return;
  const field = $("text");
  const start = doc.text.length;
  const mark = [start, start, 1 + Math.max(0, ...doc.marks.map(([, , round]) => round))];
  const addText = (part) => {
    // A text field removes them, and the positions of marks would be wrong.
    doc.text += part.replaceAll("\r", "");
    mark[1] = doc.text.length;
    if (start < mark[1] && !doc.marks.includes(mark)) doc.marks.push(mark);
  };
  const { max_tokens = DEFAULT_MAX_TOKENS } = samplingSettings();
  doc.unseen = startOfVisible(doc, max_tokens);
  doc.touched = Date.now();
  delete doc.tokenList;
  field.readOnly = true;
  let outcome = await stream(doc, addText);
  // Too long: the last part of the text goes on, which is shown.
  while (outcome.failure?.tooLong && doc.text.length - doc.unseen > state.model.context / 4) {
    const most = state.model.context * (doc.charactersPerToken || CHARACTERS_PER_TOKEN);
    const next = Math.min(most, (doc.text.length - doc.unseen) * SHORTER);
    doc.unseen = startOfLast(doc.text, next);
    outcome = await stream(doc, addText);
  }
  const { end, total, tokenList } = outcome;
  field.readOnly = false;
  if (total > ENOUGH * state.model.context)
    doc.charactersPerToken = (doc.text.length - doc.unseen) / total;
  if (tokenList) doc.tokenList = tokenList;
  if (outcome.failure) doc.unseen = 0;
  save(doc);
  view.showList();
  if (doc !== state.document) return view.show();
  view.show();
  const written = doc.text.slice(start);
  $("usage").textContent = [
    written && noteOf({ ...outcome, content: written }),
    doc.unseen && "The model did not see the shaded text",
  ]
    .filter(Boolean)
    .join(" · ");
  if (end === "lost") scrollToEnd();
  announce({ lost: "", stopped: "Stopped" }[end] ?? `Generated: ${written}`);
}

async function stream(doc, addText) {
  const generation = streamTexts(doc, [
    {
      target: doc,
      model: state.model,
      path: "v1/completions",
      body: {
        prompt: doc.text.slice(doc.unseen),
        max_tokens: DEFAULT_MAX_TOKENS,
        ...probabilityFields(false),
      },
      addText,
    },
  ]);
  save(doc);
  view.show();
  view.showList();
  const [outcome] = await generation;
  return outcome;
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
  forgetShown(doc);
  save(doc);
  view.show();
  $("text").focus();
}

export function onText() {
  const doc = state.document;
  doc.marks = shiftMarks(doc.marks, ...changeBetween(doc.text, $("text").value));
  doc.text = $("text").value;
  doc.touched = Date.now();
  forgetShown(doc);
  showText(doc);
  view.showControls();
  saveSoon();
}

/** What the last generation showed no longer fits a changed text. */
function forgetShown(doc) {
  delete doc.tokenList;
  doc.unseen = 0;
}
