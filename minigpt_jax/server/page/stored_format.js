// What the browser's storage and an imported file may hold. Anything else would break the page that
// shows it.

const isText = (value) => typeof value === "string";
const isNumber = (value) => Number.isFinite(value);
const isListOf = (value, isItem) => Array.isArray(value) && value.every(isItem);
/** Whether those of the fields `names` that there are have good values. JSON has null for NaN. */
const has = (value, names, isValue) =>
  names.every((name) => value[name] == null || isValue(value[name]));

// [token, log-probability], in a list of tokens with the list of the most likely ones.
const isPair = (pair) => Array.isArray(pair) && isText(pair[0]) && isNumber(pair[1]);
const isToken = (token) => isPair(token) && isListOf(token[2], isPair);
const isTokenList = (value) => isListOf(value, isToken);

const isVersion = (version) =>
  isText(version?.content) &&
  has(version, ["model", "end"], isText) &&
  has(version, ["tokens", "total", "seconds", "waited"], isNumber) &&
  has(version, ["tokenList"], isTokenList);
const isVersions = (value) => isListOf(value, isVersion);

// The other versions of an answer stand before and after the one that is shown.
const isMessage = (message) =>
  ["user", "assistant"].includes(message?.role) &&
  isVersion(message) &&
  has(message, ["before", "after"], isVersions) &&
  (!message.beside || message.after?.length > 0);
const isMark = (mark) => isListOf(mark, Number.isInteger) && mark.length === 3;

const isMessages = (value) => isListOf(value, isMessage);
const isConversation = (doc) =>
  isText(doc.system) && isMessages(doc.messages) && has(doc, ["replaced"], isMessages);
const isCompletion = (doc) =>
  isText(doc.text) &&
  isListOf(doc.marks, isMark) &&
  has(doc, ["unseen", "charactersPerToken"], isNumber) &&
  has(doc, ["tokenList"], isTokenList);

/** Whether `value` is a conversation or a text of any version of this page. */
export const isDocument = (value) =>
  Boolean(value) &&
  isNumber(value.touched) &&
  has(value, ["title"], isText) &&
  ((value.kind === "chat" && isConversation(value)) ||
    (value.kind === "text" && isCompletion(value)));
