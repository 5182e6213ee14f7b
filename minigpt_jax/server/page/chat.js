// What a user does in a conversation: ask, retry, edit, delete, choose a version, forget.
import { $, atEnd, fitHeight, scrollToEnd } from "./dom.js";
import { draftOf, keepDraft, save, unsave } from "./documents.js";
import { announce, toast } from "./feedback.js";
import { canForget, forget, isCut, remember } from "./forgetting.js";
import { streamTexts } from "./generation.js";
import { probabilityFields } from "./sampling.js";
import { clearFailure, modelOf, state, view } from "./state.js";
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

const lastQuestion = ({ messages }) => messages.findLastIndex(({ role }) => role === "user");

/**
 * Answers the last question, or lets two models answer. An answer at the end of the conversation is
 * an earlier version of the new one.
 *
 * If the server refuses the question, `giveBack` removes it from the conversation and returns where
 * the user finds it, which becomes `returnedTo` of the Failure: "field", or the message in whose
 * form it is.
 */
async function answer(doc, giveBack = () => undefined) {
  const asked = lastQuestion(doc);
  const messages = turnsOf({ ...doc, messages: doc.messages.slice(0, asked + 1) });
  const previous = doc.messages.slice(asked + 1).slice(-1);
  const before = doc.messages.slice(0, doc.messages.length - previous.length);
  const old = previous.flatMap(versionsOf);
  const models = [state.model, state.second].filter(Boolean);
  const targets = models.map(({ id }) => ({
    content: "",
    end: "writing",
    ...(state.models.length > 1 && { model: id }),
  }));
  const message = Object.assign(targets[0], { role: "assistant" });
  if (old.length) message.before = old;
  if (targets.length > 1) Object.assign(message, { after: [targets[1]], beside: true });
  doc.messages = [...before, message];
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
  const kept = targets.filter((target) => !isEmpty(target));
  doc.messages = [...before, ...(kept.length ? [joined(message, old, kept)] : previous)];
  if (outcomes.every(({ failure }) => failure?.refused)) {
    const returnedTo = giveBack();
    outcomes.forEach(({ failure }) => Object.assign(failure, { returnedTo }));
  }
  if (doc.messages.length) save(doc);
  if (doc !== state.document) return view.show();
  view.show();
  view.showList();
  if (follow) scrollToEnd();
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
  const { replaced } = doc;
  $("message").focus();
  // Asking on without a choice goes on with the first of two answers, and with the edit.
  doc.messages.forEach((message) => delete message.beside);
  delete doc.replaced;
  doc.messages.push({ role: "user", content });
  await answer(doc, () => {
    // Before the draft of a conversation is removed with it.
    const typed = draftOf(doc);
    doc.messages.pop();
    doc.replaced = replaced;
    if (!doc.messages.length) unsave(doc);
    keepDraft(doc, [content, typed].filter(Boolean).join("\n\n"));
    if (doc === state.document) fillField(draftOf(doc));
    return "field";
  });
}

export function fillField(text) {
  $("message").value = text;
  fitHeight($("message"));
}

export async function retry(doc) {
  if (state.generation || !state.model) return;
  $("message").focus();
  await answer(doc);
}

/** Asks a question as it was changed in its form, without what followed. */
export async function sendEdit(doc, message) {
  const field = state.edits.get(message);
  const content = field.value.trim();
  if (!content || state.generation || !state.model) return;
  const { messages, replaced } = doc;
  const index = messages.indexOf(message);
  doc.messages = [...messages.slice(0, index), { role: "user", content }];
  // The edit of an edit still replaces what the first one did.
  doc.replaced = replaced ?? (index + 1 < messages.length ? messages : undefined);
  state.edits.delete(message);
  $("message").focus();
  await answer(doc, () => {
    Object.assign(doc, { messages, replaced });
    if (doc === state.document) state.edits.set(message, field);
    return message;
  });
}

/** Brings back what the last edit replaced. */
export function undoEdit(doc) {
  if (state.generation) return;
  const { replaced } = doc;
  delete doc.replaced;
  replaceMessages(doc, replaced);
  $("message").focus();
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
  clearFailure();
  save(doc);
  if (doc === state.document) view.show();
  view.showList();
}

/** The Failure's fields for an answer that a full context ended, or undefined. */
export function cutAnswer(doc) {
  const last = doc.messages.at(-1);
  if (state.generation || !isCut(last, modelOf(last)?.context)) return;
  return {
    title: "The context is full, which ended the answer.",
    remedy: "Start a new conversation.",
    tooLong: true,
  };
}

/** The question that a failure is about: its place among the messages, and what asks it again. */
export function questionOf(doc, { returnedTo }) {
  if (!returnedTo) return { index: lastQuestion(doc), askAgain: () => retry(doc) };
  if (returnedTo === "field") return { index: doc.messages.length, askAgain: send };
  const index = doc.messages.indexOf(returnedTo);
  return { index, askAgain: () => sendEdit(doc, returnedTo) };
}

/** Forgets the oldest turns and asks again, until the rest fits. */
export async function forgetAndAsk(doc, failure) {
  if (state.generation) return;
  const { index, askAgain } = questionOf(doc, failure);
  state.failure = null;
  forget(doc, index);
  save(doc);
  view.show();
  await askAgain();
  const next = state.failure;
  if (next?.tooLong && doc === state.document && canForget(doc, questionOf(doc, next).index))
    await forgetAndAsk(doc, next);
}

export function rememberAll(doc) {
  if (state.generation) return;
  remember(doc);
  replaceMessages(doc, doc.messages);
}
