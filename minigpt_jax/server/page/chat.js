// What a user does in a conversation: ask, retry, edit, delete, choose a version, forget.
import { $, atEnd, fitHeight, scrollToEnd } from "./dom.js";
import { draftOf, keepDraft, save, unsave } from "./documents.js";
import { announce, toast } from "./feedback.js";
import { canForget, forget, isCut, remember } from "./forgetting.js";
import { streamTexts } from "./generation.js";
import { probabilityFields } from "./sampling.js";
import { state, view } from "./state.js";
import { currentOf, versionsOf, withVersions } from "./versions.js";

/**
 * The messages for the server. Roles must alternate and begin with the user, so neighbours of one
 * role are joined, and answers before the first question are left out.
 */
export function turnsOf(doc) {
  const turns = doc.system.trim() ? [{ role: "system", content: doc.system }] : [];
  for (const { role, content, forgotten } of doc.messages) {
    const last = turns.at(-1);
    if (forgotten || !content.trim()) continue;
    if (last?.role === role) last.content += `\n\n${content}`;
    else if (role === "user" || last?.role === "user") turns.push({ role, content });
  }
  return turns;
}

const isEmpty = ({ content, end }) => !content && ["lost", "stopped"].includes(end);

/**
 * Adds an answer to the conversation, or two if a second model answers too. Its earlier versions
 * are those of the answers `replaced`. If the server refuses the text, the conversation is as
 * before and `onRefused` gives the user the text back.
 *
 * A failure that forgetting can mend has `earlier`, the number of messages before the question, and
 * `repeat`, which asks again.
 */
async function answer(doc, { replaced = [], earlier, repeat, onRefused = () => {} }) {
  const messages = turnsOf(doc);
  const models = [state.model, state.second].filter(Boolean);
  const old = replaced.flatMap(versionsOf);
  const targets = models.map(({ id }) => ({
    content: "",
    end: "writing",
    ...(state.models.length > 1 && { model: id }),
  }));
  const message = Object.assign(targets[0], { role: "assistant" });
  if (old.length) message.before = old;
  if (targets.length > 1) Object.assign(message, { after: [targets[1]], beside: true });
  doc.messages.push(message);
  doc.touched = Date.now();
  const streams = targets.map((target, i) => ({
    target,
    model: models[i],
    path: "v1/chat/completions",
    body: { messages, ...probabilityFields(true) },
    addText: (part) => {
      target.content += part;
    },
  }));
  const generation = streamTexts(doc, streams);
  save(doc);
  view.show();
  view.showList();
  scrollToEnd();
  const outcomes = await generation;
  outcomes.forEach(({ failure, ...outcome }, i) => Object.assign(targets[i], outcome));
  const follow = atEnd();
  const refused = state.failure?.refused && targets.every(isEmpty);
  if (state.failure) Object.assign(state.failure, { earlier, repeat });
  const kept = targets.filter((target) => !isEmpty(target));
  doc.messages.splice(-1, 1, ...(kept.length ? [joined(message, old, kept)] : replaced));
  if (refused) onRefused();
  if (doc.messages.length) save(doc);
  if (doc !== state.document) return view.showControls();
  view.show();
  view.showList();
  if (follow) scrollToEnd();
  view.showControls();
  announce({ lost: "", stopped: "Stopped" }[message.end] ?? `Answer: ${message.content}`);
}

/** The message of the versions `old`, followed by one or two new ones. */
function joined(message, old, kept) {
  const result = withVersions(message, [...old, ...kept.map(currentOf)], old.length);
  return kept.length > 1 ? { ...result, beside: true } : result;
}

/** Asks what is in the text field. */
export async function send() {
  const content = $("message").value.trim();
  if (!content || state.generation || !state.model) return;
  fillField("");
  keepDraft(state.document, "");
  await ask(content);
}

export async function ask(content) {
  const doc = state.document;
  if (state.generation || !state.model) return;
  $("message").focus();
  // Whoever asks on without a choice goes on with the first of two answers.
  doc.messages.forEach((message) => delete message.beside);
  doc.messages.push({ role: "user", content });
  const onRefused = () => {
    doc.messages.pop();
    if (!doc.messages.length) unsave(doc);
    keepDraft(doc, [content, draftOf(doc)].filter(Boolean).join("\n\n"));
    if (doc === state.document) fillField(draftOf(doc));
  };
  await answer(doc, { earlier: doc.messages.length - 1, repeat: send, onRefused });
}

export function fillField(text) {
  $("message").value = text;
  fitHeight($("message"));
}

export async function retry(doc) {
  if (state.generation) return;
  const asked = doc.messages.findLastIndex((message) => message.role === "user");
  const replaced = doc.messages.splice(asked + 1);
  $("message").focus();
  await answer(doc, { replaced, earlier: asked, repeat: () => retry(doc) });
}

/** Asks message `index` anew as `content`, without what followed. Whether the server took it. */
export async function askAnew(doc, index, content) {
  const before = doc.messages;
  let refused = false;
  doc.messages = [...before.slice(0, index), { role: "user", content }];
  $("message").focus();
  await answer(doc, {
    earlier: index,
    repeat: () => askAnew(doc, index, content),
    onRefused: () => {
      doc.messages = before;
      refused = true;
    },
  });
  if (!refused && index + 1 < before.length && !state.generation)
    toast("The message and those after it were replaced.", () => replaceMessages(doc, before));
  return !refused;
}

export function deleteMessage(doc, index) {
  if (state.generation) return;
  const before = doc.messages;
  replaceMessages(
    doc,
    before.filter((_, i) => i !== index),
  );
  toast("Message deleted.", () => replaceMessages(doc, before));
  $("message").focus();
}

export function chooseVersion(doc, index, version) {
  if (state.generation) return;
  const message = doc.messages[index];
  const chosen = withVersions(message, versionsOf(message), version);
  replaceMessages(doc, doc.messages.with(index, chosen));
}

function replaceMessages(doc, messages) {
  doc.messages = messages;
  state.failure = null;
  save(doc);
  if (doc === state.document) view.show();
  view.showList();
}

/** The Failure's fields for an answer that a full context ended, or undefined. */
export function cutAnswer(doc) {
  const last = doc.messages.at(-1);
  const model = state.models.find(({ id }) => id === last?.model) ?? state.model;
  if (state.generation || !isCut(last, model?.context)) return;
  const earlier = doc.messages.findLastIndex((message) => message.role === "user");
  return {
    title: "The context is full, which ended the answer.",
    remedy: "Start a new conversation.",
    tooLong: true,
    earlier,
    repeat: () => retry(doc),
  };
}

/** Forgets the oldest turns and asks again, until the rest fits. */
export async function forgetAndRepeat(doc, { earlier, repeat }) {
  if (state.generation) return;
  state.failure = null;
  forget(doc, earlier);
  save(doc);
  view.show();
  await repeat();
  const { failure } = state;
  if (failure?.tooLong && doc === state.document && canForget(doc, failure.earlier))
    await forgetAndRepeat(doc, failure);
}

export function rememberAll(doc) {
  if (state.generation) return;
  remember(doc);
  replaceMessages(doc, doc.messages);
}
