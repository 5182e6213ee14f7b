// The dialog of settings, which apply to all conversations, and the choice of colours.
import { $, element, iconButton } from "./dom.js";
import { CONTROLS, settingOf } from "./sampling.js";
import { read } from "./store.js";
import { changeSettings, storedSettings } from "./stored_settings.js";

export const THEME = "minigpt.theme";

function setControl(control, value) {
  const changed = { ...storedSettings(), [control.name]: value };
  changeSettings({ [control.name]: settingOf(control, changed) });
  showSettings();
}

export function resetSampling() {
  changeSettings(Object.fromEntries(CONTROLS.map(({ name }) => [name, null])));
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
  const { system, probabilities } = storedSettings();
  // A field in which the user writes at this moment is not changed.
  if (document.activeElement !== $("new-system")) $("new-system").value = system ?? "";
  $("probabilities").checked = probabilities === true;
}

export function showTheme() {
  const theme = ["light", "dark"].includes(read(THEME)) ? read(THEME) : "system";
  document.documentElement.dataset.theme = theme;
  $("themes").querySelector(`[value="${theme}"]`).checked = true;
}
