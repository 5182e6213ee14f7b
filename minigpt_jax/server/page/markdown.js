// Blocks of Markdown become elements and text nodes.
import { blocksOf, MAX_DEPTH } from "./blocks.js";
import { element } from "./dom.js";
import { copy } from "./feedback.js";
import { showCode } from "./highlight.js";

function nodeOf(block, depth = 0) {
  const renderInner = (text) =>
    depth < MAX_DEPTH ? blocksOf(text).map((inner) => nodeOf(inner, depth + 1)) : [text];
  const cell = (tag) => (text) => element(tag, {}, ...inline(text.trim()));
  const row = (line, tag) =>
    element(
      "tr",
      {},
      ...line
        .trim()
        .replace(/^\||\|$/g, "")
        .split("|")
        .map(cell(tag)),
    );
  switch (block.kind) {
    case "code":
      return codeNode(block);
    case "heading":
      return element(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text));
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...renderInner(block.text));
    case "list":
      return element(
        block.ordered ? "ol" : "ul",
        { start: block.ordered && block.first },
        ...block.items.map((text) => {
          const nodes = renderInner(text);
          // Without the paragraph, the first line stands beside the bullet.
          if (nodes[0]?.tagName === "P") nodes.splice(0, 1, ...nodes[0].childNodes);
          return element("li", {}, ...nodes);
        }),
      );
    case "table":
      return element(
        "div",
        { class: "table" },
        element(
          "table",
          {},
          element("thead", {}, row(block.head, "th")),
          element("tbody", {}, ...block.rows.map((line) => row(line, "td"))),
        ),
      );
    default:
      return element("p", {}, ...inline(block.text));
  }
}

function codeNode(block) {
  const code = element("code");
  showCode(code, block.text, block.language);
  const copyCode = (event) => copy(code.textContent, event.currentTarget);
  return element(
    "div",
    { class: "code" },
    element(
      "div",
      {},
      element("span", {}, block.language || "text"),
      element("button", { type: "button", click: copyCode }, "Copy"),
    ),
    element("pre", { tabindex: 0 }, code),
  );
}

function updateCode(node, block) {
  node.querySelector("span").textContent = block.language || "text";
  showCode(node.querySelector("code"), block.text, block.language);
  return node;
}

const LINK = /\[([^\[\]\n]{1,300})\]\((https?:\/\/[^\s()<>"]{1,1000})\)/y;
const TICKS = /`{1,9}/y;
const STYLES = [
  ["**", "strong"],
  ["__", "strong"],
  ["*", "em"],
  ["_", "em"],
];

/** Text nodes and elements for code, bold, italic and links. What is not closed is plain text. */
function inline(text, depth = 0) {
  const nodes = [];
  // Marks without a closing one in the rest of the text: searched for once.
  const absent = new Set();
  let textStart = 0;
  const addNode = (from, to, node) => {
    if (from > textStart) nodes.push(text.slice(textStart, from));
    nodes.push(node);
    textStart = to;
  };
  for (let at = 0; at < text.length; at = Math.max(at + 1, textStart)) {
    if (text[at] === "`") {
      TICKS.lastIndex = at;
      const [ticks] = TICKS.exec(text);
      const end = text.indexOf(ticks, at + ticks.length);
      if (end > 0)
        addNode(
          at,
          end + ticks.length,
          element("code", {}, text.slice(at + ticks.length, end).replace(/^ (.*) $/s, "$1")),
        );
    } else if (text[at] === "[") {
      LINK.lastIndex = at;
      const link = LINK.exec(text);
      const attributes = { href: link?.[2], target: "_blank", rel: "noopener noreferrer" };
      if (link)
        addNode(
          at,
          LINK.lastIndex,
          element(
            "a",
            attributes,
            ...(depth < MAX_DEPTH ? inline(link[1], depth + 1) : [link[1]]),
          ),
        );
    } else if (text[at] === "*" || text[at] === "_") {
      const [mark, tag] = STYLES.find(([m]) => text.startsWith(m, at));
      const end = depth === MAX_DEPTH || absent.has(mark) ? -1 : findClosing(text, mark, at);
      if (end > 0)
        addNode(
          at,
          end + mark.length,
          element(tag, {}, ...inline(text.slice(at + mark.length, end), depth + 1)),
        );
      else if (end === -1) absent.add(mark);
    }
  }
  if (textStart < text.length) nodes.push(text.slice(textStart));
  return nodes;
}

/** Where the emphasis that opens at `at` ends. -1: nowhere in this text, 0: none opens here. */
function findClosing(text, mark, at) {
  const inWord = (i) => mark[0] === "_" && /\w/.test(text[i] ?? "");
  if (/^\s?$/.test(text[at + mark.length] ?? "") || inWord(at - 1)) return 0;
  for (
    let end = text.indexOf(mark, at + mark.length + 1);
    end > 0;
    end = text.indexOf(mark, end + 1)
  ) {
    // A single mark does not close with one half of a double mark.
    if (mark.length === 1 && text[end + 1] === mark) end++;
    else if (!/\s/.test(text[end - 1]) && !inWord(end + mark.length)) return end;
  }
  return -1;
}

/**
 * A function that renders a growing text into `target`. It renders only the blocks again that may
 * still change.
 */
export function incrementalRenderer(target) {
  // Characters of the blocks that cannot change. The last two can: the next line may turn them
  // into other blocks.
  let finalLength = 0;
  let changing = [];
  return (text) => {
    const blocks = blocksOf(text.slice(finalLength));
    const nodes = blocks.map((block, i) => {
      // Code is updated in place, so that the user's scroll position and selection stay.
      const node =
        block.kind === "code" && changing[i]?.matches(".code")
          ? updateCode(changing[i], block)
          : nodeOf(block);
      if (!changing[i]) target.append(node);
      else if (changing[i] !== node) changing[i].replaceWith(node);
      return node;
    });
    changing.slice(nodes.length).forEach((node) => node.remove());
    const firstChanging = Math.max(0, blocks.length - 2);
    finalLength += blocks[firstChanging]?.start ?? 0;
    changing = nodes.slice(firstChanging);
  };
}
