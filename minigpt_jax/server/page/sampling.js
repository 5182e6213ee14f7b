// What the user's settings say about sampling and probabilities: ranges, and fields of requests.
import { storedSettings } from "./stored_settings.js";

export const CONTROLS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    initial: 0.8,
    hint: "0: always the most likely token.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.05,
    max: 1,
    step: 0.05,
    initial: 0.95,
    hint: "Only the smallest set of tokens whose probabilities add up to p. 1: all.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    initial: 0,
    hint: "Only tokens with at least this share of the highest probability.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 1,
    max: 2,
    step: 0.05,
    initial: 1,
    hint: "Above 1: tokens already in the text become less likely.",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 1,
    max: 1000,
    step: 1,
    initial: "",
    hint: "Only the k most likely tokens.",
    empty: "all",
  },
  {
    name: "max_tokens",
    label: "Maximum length in tokens",
    min: 1,
    max: 100000,
    step: 1,
    initial: "",
    empty: "no limit",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: 4294967295,
    step: 1,
    initial: "",
    hint: "The same seed gives the same answer.",
    empty: "random",
  },
];

// Most likely tokens in the place of each token, if the user asks for them.
const NUM_ALTERNATIVES = 5;

/** The value of a control: a number within its range, or its initial value. */
export function settingOf({ name, min, max, step, initial }, settings = storedSettings()) {
  const value = settings[name];
  if (typeof value !== "number" || !Number.isFinite(value)) return initial;
  const bounded = Math.min(max, Math.max(min, value));
  return step === 1 ? Math.round(bounded) : bounded;
}

export function samplingSettings() {
  const settings = CONTROLS.map((control) => [control.name, settingOf(control)]);
  return Object.fromEntries(settings.filter(([, value]) => value !== ""));
}

/** The fields that ask for token probabilities, which make generation slower; {} by default. */
export function probabilityFields(chat) {
  if (storedSettings().probabilities !== true) return {};
  return chat
    ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES }
    : { logprobs: NUM_ALTERNATIVES };
}
