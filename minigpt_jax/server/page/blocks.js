// Lines of Markdown become blocks: paragraphs, code, lists, tables.

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)/;
// Of lists and quotes in each other. Deeper ones are shown as plain text.
export const MAX_DEPTH = 6;

const isBlank = (line) => line.trim() === "";
const isTable = (head, below = "") =>
  head.includes("|") && below.includes("|") && below.includes("-") && /^[ |:-]+$/.test(below);
const beginsBlock = (line) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

/**
 * The blocks of `text`: {kind, start (offset in text), ...}. A block does not depend on what is
 * before it.
 */
export function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let offset = 0;
  for (let at = 0; at < lines.length;) {
    const block = isBlank(lines[at]) ? { end: at + 1 } : blockAt(lines, at);
    if (block.kind) blocks.push({ ...block, start: offset });
    for (; at < block.end; at++) offset += lines[at].length + 1;
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  const findEnd = (stops, from = at + 1) => {
    let end = from;
    while (end < lines.length && !stops(lines[end], end)) end++;
    return end;
  };
  const fence = line.match(FENCE);
  if (fence) {
    const end = findEnd(
      (l) => l.trim().length >= fence[1].length && isBlank(l.trim().replaceAll(fence[1][0], "")),
    );
    const text = lines.slice(at + 1, end).join("\n");
    return {
      kind: "code",
      language: fence[2].trim().split(" ")[0],
      text,
      end: Math.min(end + 1, lines.length),
    };
  }
  const heading = line.match(HEADING);
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2], end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) {
    const end = findEnd((l) => !QUOTE.test(l));
    return {
      kind: "quote",
      text: lines
        .slice(at, end)
        .map((l) => l.replace(QUOTE, ""))
        .join("\n"),
      end,
    };
  }
  if (ITEM.test(line)) return listAt(lines, at);
  if (isTable(line, lines[at + 1])) {
    const end = findEnd((l) => isBlank(l) || !l.includes("|"), at + 2);
    return { kind: "table", head: line, rows: lines.slice(at + 2, end), end };
  }
  const end = findEnd((l, i) => isBlank(l) || beginsBlock(l) || isTable(l, lines[i + 1]));
  return { kind: "paragraph", text: lines.slice(at, end).join("\n"), end };
}

function listAt(lines, at) {
  const [, indent, marker] = lines[at].match(ITEM);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  for (let contentIndent = 0, blank = false; end < lines.length; end++) {
    const line = lines[end];
    const item = line.match(ITEM);
    if (item && item[1].length < indent.length + 2) {
      if (/\d/.test(item[2]) !== ordered || RULE.test(line)) break;
      contentIndent = item[0].length;
      items.push([line.slice(contentIndent)]);
    } else if (isBlank(line)) {
      items.at(-1).push("");
    } else if (/^ {2}/.test(line)) {
      items.at(-1).push(line.slice(Math.min(contentIndent, line.search(/\S/))));
    } else if (blank || beginsBlock(line)) {
      // The list has ended.
      break;
    } else {
      items.at(-1).push(line);
    }
    blank = isBlank(line);
  }
  return {
    kind: "list",
    ordered,
    first: parseInt(marker, 10),
    items: items.map((item) => item.join("\n").trimEnd()),
    end,
  };
}
