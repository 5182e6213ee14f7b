// Tokens with their probabilities: each is a span that names its alternatives under the pointer, a
// finger or the keyboard.
import { $, element } from "./dom.js";
import { placeBelow } from "./popover.js";
import { state } from "./state.js";

// A part of a character, which is no text, by its bytes: bytes:\xf0\x9f.
const BYTES = /^bytes:(?=\\x)/;
const nameOf = (token, bytes) =>
  bytes && token.includes("\ufffd")
    ? `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`
    : token;
// Fewer digits, because they are stored.
const rounded = (logprob) => Math.round(logprob * 1000) / 1000;

/** [token, log-probability, [[token, log-probability] of the most likely ones]] for each token. */
export function tokensOf({ content, tokens, token_logprobs, top_logprobs }) {
  if (content)
    return content.map(({ token, bytes, logprob, top_logprobs: top }) => [
      nameOf(token, bytes),
      rounded(logprob),
      top.map((other) => [nameOf(other.token, other.bytes), rounded(other.logprob)]),
    ]);
  return (tokens ?? []).map((token, i) => [
    token,
    rounded(token_logprobs[i]),
    Object.entries(top_logprobs?.[i] ?? {}).map(([other, logprob]) => [other, rounded(logprob)]),
  ]);
}

export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.01) return "<0.01%";
  const digits = value < 1 ? 2 : value < 10 ? 1 : 0;
  return `${value.toLocaleString("en", { maximumFractionDigits: digits })}%`;
}

// Lowest percentages of likely, less likely and unlikely tokens, which have different colours.
const LEVELS = [50, 10, 1];

const levelOf = (logprob) => LEVELS.findIndex((lowest) => 100 * Math.exp(logprob) >= lowest);

/** The tokens as text in which the arrow keys move. */
export function tokensNode(tokens) {
  const spans = tokens.map(([token, logprob], i) => {
    const level = levelOf(logprob);
    const isBlank = !token.trim();
    const kinds = [
      "token",
      level < 0 ? "rare" : `level-${level}`,
      // Else it would have no width.
      isBlank && token.includes("\n") && "line-break",
    ];
    const attributes = {
      class: kinds.filter(Boolean).join(" "),
      role: "option",
      tabindex: i ? -1 : 0,
      "aria-describedby": "tip",
      "aria-label": isBlank && JSON.stringify(token),
    };
    return element("span", attributes, token.replace(BYTES, ""));
  });
  const show = ({ target }) => {
    const index = spans.indexOf(target);
    if (index >= 0) showTip(target, tokens[index]);
  };
  const keydown = (event) => {
    const index = spans.indexOf(event.target);
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -index, End: spans.length - 1 - index };
    if (!spans[index + steps[event.key]]) return;
    move(index, index + steps[event.key]);
    event.preventDefault();
  };
  const move = (from, to) => {
    spans[from].tabIndex = -1;
    spans[to].tabIndex = 0;
    spans[to].focus();
  };
  return element(
    "div",
    {
      class: "tokens",
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": "Tokens. Arrow keys move and read the alternatives.",
      pointerover: show,
      pointerout: hideTip,
      focusin: show,
      focusout: hideTip,
      keydown,
    },
    ...spans,
  );
}

const isTipOpen = () => $("tip").matches(":popover-open");

function showTip(span, [token, logprob, alternatives]) {
  const isListed = alternatives.some(([other]) => other === token);
  const lines = isListed ? alternatives : [...alternatives, [token, logprob]];
  const nodes = lines.map(([text, probability]) =>
    element(
      "li",
      { class: text === token && "chosen" },
      element("code", {}, JSON.stringify(text.replace(BYTES, ""))),
      " ",
      element("span", {}, percent(probability)),
    ),
  );
  state.tipOf = span;
  $("tip").replaceChildren(element("ul", {}, ...nodes));
  $("tip").showPopover();
  placeTip(span);
}

const placeTip = (span) =>
  placeBelow($("tip"), span.getClientRects()[0] ?? span.getBoundingClientRect());

/** A token keeps its tip when the page scrolls to it because the keyboard has reached it. */
export function onScroll() {
  if (isTipOpen() && state.tipOf === document.activeElement) placeTip(state.tipOf);
  else hideTip();
}

/** Returns whether there was one. */
export function hideTip() {
  const wasOpen = isTipOpen();
  if (wasOpen) $("tip").hidePopover();
  return wasOpen;
}
