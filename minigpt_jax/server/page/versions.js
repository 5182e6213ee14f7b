// The versions of an answer. A message has the fields of the version that is shown and sent on;
// `before` and `after` are lists of the others. `beside` is true while the user has not chosen
// between the last two, which are shown beside each other.

/** The fields of the version that is shown. */
export const currentOf = ({ before, after, beside, role, forgotten, ...version }) => version;

export const versionsOf = (message) => [
  ...(message.before ?? []),
  currentOf(message),
  ...(message.after ?? []),
];

export const indexOf = (message) => message.before?.length ?? 0;

/** The message whose versions are `versions`, and which shows the one of `index`. */
export function withVersions({ role, forgotten }, versions, index) {
  const before = versions.slice(0, index);
  const after = versions.slice(index + 1);
  return {
    role,
    ...(forgotten && { forgotten }),
    ...versions[index],
    ...(before.length && { before }),
    ...(after.length && { after }),
  };
}
