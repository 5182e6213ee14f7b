// What is said below an answer: how it ended and how fast it was.
import { plural } from "./dom.js";

export function noteOf({ role, content, end, tokens, seconds }) {
  if (role === "user") return "";
  const notes = {
    length: "Length limit reached",
    stopped: "Stopped",
    lost: "Incomplete",
    writing: "Incomplete",
    stop: content.trim() ? "" : "The answer is empty",
  };
  const speed =
    seconds > 0 && tokens > 0
      ? `${plural(tokens, "token")}, ${Math.round(tokens / seconds)} tokens/s`
      : "";
  return [notes[end], speed].filter(Boolean).join(" · ");
}
