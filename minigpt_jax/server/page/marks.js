// Where the parts of a text are that a model wrote.

/** [from, to, length]: `before` from `from` to `to` became `length` characters of `after`. */
export function changeBetween(before, after) {
  const shorter = Math.min(before.length, after.length);
  let from = 0;
  while (from < shorter && before[from] === after[from]) from++;
  let same = 0;
  while (same < shorter - from && before.at(-1 - same) === after.at(-1 - same)) same++;
  return [from, before.length - same, after.length - same - from];
}

/**
 * Marks are [start, end, round]: parts that the model generated. A change moves them, and typed
 * text is cut out of them.
 */
export function shiftMarks(marks, from, to, length) {
  const moved = length - (to - from);
  return marks
    .flatMap(([start, end, round]) => [
      [start, Math.min(end, from), round],
      [Math.max(start, to) + moved, end + moved, round],
    ])
    .filter(([start, end]) => start < end);
}

/**
 * The text in pieces of one kind each: {text, round, isUnseen}. `round` is undefined for text that
 * the user wrote; the first `unseen` characters are unseen.
 */
export function piecesOf(text, marks, unseen) {
  const limits = marks.flatMap(([start, end]) => [start, end]);
  const all = [0, Math.min(unseen, text.length), text.length, ...limits];
  const sorted = [...new Set(all)].sort((a, b) => a - b);
  return sorted.slice(1).map((to, i) => {
    const from = sorted[i];
    const round = marks.find(([start, end]) => start <= from && to <= end)?.[2];
    return { text: text.slice(from, to), round, isUnseen: to <= unseen };
  });
}
