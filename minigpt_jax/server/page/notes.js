// What is said below an answer: who wrote it, how it ended, how long it waited, how fast it was.
import { plural } from "./dom.js";

const ENDS = {
  length: "Length limit reached",
  stopped: "Stopped",
  lost: "Incomplete",
  writing: "Incomplete",
};

export function noteOf({ content, model, end, tokens, seconds, waited }) {
  const isEmpty = end === "stop" && !content.trim();
  const rate = seconds > 0 ? `, ${Math.round(tokens / seconds)} tokens/s` : "";
  return [
    model,
    isEmpty ? "The answer is empty" : ENDS[end],
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
