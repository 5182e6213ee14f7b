// Settings, which apply to all conversations.
import { $, element, iconButton } from "./dom.js";
import { read, write } from "./storage.js";

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
export const SETTINGS = "minigpt.settings";
export const THEME = "minigpt.theme";

function storedSettings() {
  try {
    return JSON.parse(read(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

/** The value of a control: a number within its range, or its initial value. */
function settingOf({ name, min, max, step, initial }, settings = storedSettings()) {
  const value = settings[name];
  if (typeof value !== "number" || !Number.isFinite(value)) return initial;
  const bounded = Math.min(max, Math.max(min, value));
  return step === 1 ? Math.round(bounded) : bounded;
}

export function samplingSettings() {
  const settings = CONTROLS.map((control) => [control.name, settingOf(control)]);
  return Object.fromEntries(settings.filter(([, value]) => value !== ""));
}

function setControl(control, value) {
  const settings = { ...storedSettings(), [control.name]: value };
  settings[control.name] = settingOf(control, settings);
  write(SETTINGS, JSON.stringify(settings));
  showSettings();
}

export function controlNode(control) {
  const { name, label, min, max, step, hint, empty } = control;
  const change = (event) =>
    setControl(control, event.target.value === "" ? null : event.target.valueAsNumber);
  const input = element("input", {
    id: `set-${name}`,
    type: empty ? "number" : "range",
    min,
    max,
    step,
    placeholder: empty,
    "aria-describedby": hint && `hint-${name}`,
    [empty ? "change" : "input"]: change,
  });
  const head = element(
    "div",
    {},
    element("label", { for: `set-${name}` }, label),
    empty ? "" : element("output", { for: `set-${name}` }),
    iconButton("retry", `Reset ${label}`, () => {
      setControl(control, null);
      input.focus();
    }),
  );
  return element(
    "div",
    { class: "control" },
    head,
    input,
    hint ? element("p", { class: "muted", id: `hint-${name}` }, hint) : "",
  );
}

export function showSettings() {
  for (const [index, control] of CONTROLS.entries()) {
    const value = settingOf(control);
    const node = $("controls").children[index];
    node.querySelector("input").value = value;
    node.querySelector("input").max = control.max;
    node.querySelector("button").disabled = value === control.initial;
    if (!control.empty) node.querySelector("output").textContent = String(value);
  }
}

export function showTheme() {
  const theme = ["light", "dark"].includes(read(THEME)) ? read(THEME) : "system";
  document.documentElement.dataset.theme = theme;
  $("themes").querySelector(`[value="${theme}"]`).checked = true;
}
