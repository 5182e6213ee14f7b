// The user's settings in the browser's storage: those of sampling, `probabilities`, and `system`,
// the system prompt of new conversations.
import { read, write } from "./store.js";

export const SETTINGS = "minigpt.settings";

/** All settings that the user has changed, by name. */
export function storedSettings() {
  try {
    return JSON.parse(read(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

export function changeSettings(changes) {
  write(SETTINGS, JSON.stringify({ ...storedSettings(), ...changes }));
}
