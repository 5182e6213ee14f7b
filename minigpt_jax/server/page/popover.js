// Where a small window over the page stands: near what opened it.

/** Puts a popover below a rectangle, or above it where there is no room, inside of the window. */
export function placeBelow(popover, { left, top, bottom }) {
  const { width, height } = popover.getBoundingClientRect();
  const below = bottom + 6;
  popover.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  popover.style.top = `${below + height > innerHeight ? Math.max(8, top - height - 6) : below}px`;
}
