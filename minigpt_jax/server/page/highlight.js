// Colours of code: comments, strings, numbers and keywords. A small tokenizer, not a parser.
import { element } from "./dom.js";

const words = (text) => new Set(text.split(" "));
const KEYWORDS = {
  python: words(
    "and as assert async await break case class continue def del elif else except False finally " +
      "for from global if import in is lambda match None nonlocal not or pass raise return True " +
      "try while with yield",
  ),
  javascript: words(
    "async await break case catch class const continue default delete do else export extends " +
      "false finally for from function if import in instanceof let new null of return static " +
      "super switch this throw true try typeof undefined var void while yield",
  ),
  json: words("true false null"),
  bash: words(
    "case do done elif else esac exit export fi for function if in local read return set shift " +
      "then unset until while",
  ),
};
// Of a language that has no list of its own: what most languages share.
const OTHER = words(
  "abstract and bool break case catch char class const continue def default do double else end " +
    "enum extends false final float fn for func function if impl implements import in int " +
    "interface let long match mut new nil not null or package private protected pub public " +
    "return self static string struct super switch this throw true try type use using var void " +
    "while with SELECT FROM WHERE INSERT UPDATE DELETE JOIN GROUP ORDER BY AND OR NOT CREATE TABLE",
);
const NAMES = {
  py: "python",
  python3: "python",
  js: "javascript",
  jsx: "javascript",
  mjs: "javascript",
  ts: "javascript",
  tsx: "javascript",
  typescript: "javascript",
  sh: "bash",
  shell: "bash",
  zsh: "bash",
  console: "bash",
};
// Neither of these is code.
const PLAIN = words("text txt plain plaintext output markdown md");

// What is not closed ends with its line, or with the text where several lines are allowed.
const LINE_STRINGS = String.raw`"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?`;
const LONG_STRINGS = String.raw`"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)`;
const TEMPLATES = "`(?:[^`\\\\]|\\\\[^])*`?";
const HASH = String.raw`#.*`;
const SLASHES = String.raw`\/\/.*|\/\*[^]*?(?:\*\/|$)`;
const WORD = String.raw`(?<word>[\p{L}_$][\p{L}\p{N}_$]*)`;
const REST = String.raw`(?<number>\b\d[\w.]*)|${WORD}|(?<other>[^]\s*)`;

const grammar = (comment, string) =>
  new RegExp(`(?<comment>${comment})|(?<string>${string})|${REST}`, "uy");

const GRAMMARS = {
  python: grammar(HASH, `(?:\\b[rbfuRBFU]{1,2})?(?:${LONG_STRINGS}|${LINE_STRINGS})`),
  javascript: grammar(SLASHES, `${LINE_STRINGS}|${TEMPLATES}`),
  json: grammar(SLASHES, LINE_STRINGS),
  // A hash inside of a word is none: $# and ${#a}.
  bash: grammar(String.raw`(?<![^\s;])#.*`, LINE_STRINGS),
};
// Of unknown languages both kinds of comments; # only at the beginning of a line.
const OTHER_GRAMMAR = grammar(String.raw`${SLASHES}|(?<=(?:^|\n)[ \t]*)#.*|--\s.*`, LINE_STRINGS);
// Longer code has one colour: so many elements would make the page slow.
const MAX_LENGTH = 50000;

/** [kind, text] of the pieces of a text. `kind` is "" for text without a colour. */
export function piecesOfCode(text, language) {
  const known = NAMES[language.toLowerCase()] ?? language.toLowerCase();
  if (PLAIN.has(known) || text.length > MAX_LENGTH) return [["", text]];
  const pattern = GRAMMARS[known] ?? OTHER_GRAMMAR;
  const keywords = KEYWORDS[known] ?? OTHER;
  const pieces = [];
  pattern.lastIndex = 0;
  for (let match; pattern.lastIndex < text.length && (match = pattern.exec(text)); ) {
    const { comment, string, number, word } = match.groups;
    const kind =
      (comment && "comment") ||
      (string && "string") ||
      (number && "number") ||
      (word && keywords.has(word) && "keyword") ||
      "";
    if (pieces.length && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += match[0];
    else pieces.push([kind, match[0]]);
  }
  return pieces;
}

// The pieces that an element shows.
const shown = new WeakMap();

/** Shows code. Pieces that did not change stay, so that a selection in them stays too. */
export function showCode(node, text, language) {
  const pieces = piecesOfCode(text, language);
  const before = shown.get(node) ?? [];
  const same = (piece, i) => piece[0] === before[i]?.[0] && piece[1] === before[i]?.[1];
  let kept = 0;
  while (kept < pieces.length && same(pieces[kept], kept)) kept++;
  while (node.childNodes.length > kept) node.lastChild.remove();
  for (const [kind, part] of pieces.slice(kept))
    node.append(kind ? element("span", { class: kind }, part) : part);
  shown.set(node, pieces);
}
