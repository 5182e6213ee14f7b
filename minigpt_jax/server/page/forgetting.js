// A conversation that no longer fits into the context: its oldest turns are no longer sent. They
// have the mark `forgotten` and stay on the page.

const isRemembered = (message) => !message.forgotten;

/** Whether an answer ended because the context was full. */
export const isCut = ({ end, total } = {}, context) => end === "length" && total >= context;

/** Whether any of the first `earlier` messages are still sent. */
export const canForget = (doc, earlier) => doc.messages.slice(0, earlier).some(isRemembered);

// Of the text before a question, so that the next questions fit too.
const KEPT = 2 / 3;

/**
 * Forgets whole turns of a question and its answers, from the oldest on, until at most the share
 * KEPT of the text before message `earlier` is left.
 */
export function forget(doc, earlier) {
  const sent = doc.messages.slice(0, earlier).filter(isRemembered);
  let left = sent.reduce((sum, { content }) => sum + content.length, 0);
  const most = KEPT * left;
  for (const [i, message] of sent.entries()) {
    if (i && message.role === "user" && left <= most) break;
    message.forgotten = true;
    left -= message.content.length;
  }
}

export function remember(doc) {
  doc.messages.forEach((message) => delete message.forgotten);
}
