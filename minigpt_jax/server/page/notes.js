// What is said below an answer: who wrote it, how it ended, how long it waited, how fast it was.
import { plural } from "./dom.js";
import { isCut } from "./forgetting.js";
import { modelOf } from "./state.js";

const ENDS = {
  length: "Length limit reached",
  stopped: "Stopped",
  lost: "Incomplete",
  writing: "Incomplete",
};

function endOf(version) {
  const { content, end } = version;
  if (end === "stop" && !content.trim()) return "The answer is empty";
  if (isCut(version, modelOf(version)?.context)) return "The context is full";
  return Object.hasOwn(ENDS, end) && ENDS[end];
}

export function noteOf(version, hasModel = true) {
  const { model, tokens, seconds, waited } = version;
  const rate = seconds > 0 ? `, ${Math.round(tokens / seconds)} tokens/s` : "";
  return [
    hasModel && model,
    endOf(version),
    tokens > 0 && plural(tokens, "token") + rate,
    waited >= 1 && `waited ${Math.round(waited)} s`,
  ]
    .filter(Boolean)
    .join(" · ");
}

export const waitingNote = (before) =>
  before === undefined ? "" : `Waiting, ${before.toLocaleString("en")} before you`;

/** 124000000 becomes 124M. */
export const roundedNumber = (number) =>
  new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
