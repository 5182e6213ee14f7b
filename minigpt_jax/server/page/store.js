// Single values in the browser's storage, or in memory where the browser refuses to store them.
import { $ } from "./dom.js";

// What the browser refused, because the storage is full or disabled: {value, before}, with what it
// had then. Lost with the page.
const unstored = new Map();
// The same, of this tab's values.
const unstoredOfTab = new Map();

export function read(key) {
  return unstored.has(key) ? unstored.get(key).value : stored(key);
}

function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Returns whether the browser stored it. While anything is not stored, the page says so. */
export function write(key, value) {
  const isStored = store(key, value);
  $("unstored").hidden = !unstored.size;
  return isStored;
}

function store(key, value) {
  try {
    localStorage.setItem(key, value);
    unstored.delete(key);
    return true;
  } catch {
    const { before } = unstored.get(key) ?? { before: stored(key) };
    unstored.set(key, { value, before });
    return false;
  }
}

export function remove(key) {
  unstored.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // Storage is disabled, so nothing was stored.
  }
  // There may be room for the others now, unless another tab has stored a newer one.
  for (const [other, { value, before }] of [...unstored])
    if (stored(other) === before) store(other, value);
  $("unstored").hidden = !unstored.size;
}

export function allKeys() {
  let keys = [];
  try {
    keys = Object.keys(localStorage);
  } catch {
    // Storage is disabled.
  }
  return [...new Set([...keys, ...unstored.keys()])];
}

/** A value of this tab alone, which a reload keeps and other tabs do not see. null removes it. */
export function writeOfTab(key, value) {
  unstoredOfTab.delete(key);
  try {
    if (value === null) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, value);
  } catch {
    unstoredOfTab.set(key, value);
  }
}

export function readOfTab(key) {
  if (unstoredOfTab.has(key)) return unstoredOfTab.get(key);
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}
