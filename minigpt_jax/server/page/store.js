// Single values in the browser's storage, or in memory where the browser refuses to store them.
import { toast } from "./feedback.js";

// What the browser refused, because the storage is full or disabled. Lost with the page.
const unstored = new Map();

export function read(key) {
  if (unstored.has(key)) return unstored.get(key);
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function write(key, value) {
  try {
    localStorage.setItem(key, value);
    unstored.delete(key);
  } catch {
    if (!unstored.size)
      toast("The browser's storage is full or disabled: this is lost when you reload the page.");
    unstored.set(key, value);
  }
}

export function remove(key) {
  unstored.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // Storage is disabled, so nothing was stored.
  }
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
