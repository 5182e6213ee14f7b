// What an empty page says: which model this is, what it can do, and what one could ask it.
import { element, plural } from "./dom.js";
import { roundedNumber } from "./notes.js";
import { canChat, state } from "./state.js";

const MAX_EXAMPLES = 3;
// Of fewer parameters, models know little of the world.
const FEW_PARAMETERS = 3e9;

export const factsOf = ({ chat, context }) =>
  `${chat === false ? "Completion" : "Chat"}, context of ${plural(context, "token")}`;

/** The parts of the introduction; `use` is called with the example that the user chooses. */
export function introduction(title, use) {
  const { model } = state;
  const examples = (model?.examples ?? []).filter((text) => typeof text === "string");
  const buttons = examples
    .slice(0, MAX_EXAMPLES)
    .map((text) => element("button", { type: "button", click: () => use(text) }, text));
  const what = canChat() ? "Conversations" : "Texts";
  return [
    element("h2", {}, title),
    model ? element("p", {}, sentenceAbout(model)) : "",
    buttons.length ? element("div", { class: "examples" }, ...buttons) : "",
    element("p", { class: "muted" }, `${what} are stored only in this browser.`),
  ];
}

// What to expect of a small and of a large model.
const CAUTIONS = {
  chat: ["It is small, so its answers will often be wrong.", "Not all its answers will be right."],
  text: [
    "It is small, so its texts will often make no sense.",
    "Not all that its texts say will be right.",
  ],
};

function sentenceAbout({ id, chat, parameters, context }) {
  const size = parameters ? `${roundedNumber(parameters)} parameters and ` : "";
  const cautions = CAUTIONS[chat === false ? "text" : "chat"];
  const caution = cautions[parameters < FEW_PARAMETERS ? 0 : 1];
  return `${id} has ${size}a context of ${plural(context, "token")}. ${caution}`;
}
