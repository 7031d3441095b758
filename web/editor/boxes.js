// The list of boxes and what can be done to it. Element i is subject i's box, null where it has none; nothing here changes a list, it returns a new one.
// A box is {label, x, y, w, h} in parts of the picture, perhaps with `locked: true` and keys of others, which are kept.

export const SMALLEST = 0.01; // of the picture's side: a drawn box is at least this wide and high
const SIDES = ["x", "y", "w", "h"];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round4 = (value) => Number(value.toFixed(4));

/** {boxes, fault}: fault is a sentence where the text is no list of boxes; the boxes are then empty. */
export function parse(text) {
  let boxes = [];
  try {
    boxes = text.trim() ? JSON.parse(text) : [];
  } catch {
    return { boxes: [], fault: "The text of the boxes is not JSON." };
  }
  if (!Array.isArray(boxes)) return { boxes: [], fault: "The text of the boxes is not a list." };
  const bad = boxes.findIndex((box) => box !== null && !isBox(box));
  return bad < 0 ? { boxes, fault: "" } : { boxes: [], fault: `Entry ${bad + 1} of the text is no box.` };
}

const isBox = (box) => typeof box === "object" && SIDES.every((side) => Number.isFinite(box[side])) && box.w > 0 && box.h > 0;

/** The text of a list: one line for each subject. */
export const write = (boxes) => `[${boxes.map((box) => JSON.stringify(box)).join(",\n ")}]`;

/** The list with `box` (or null) for subject `index`, as long as it must be. */
export function placed(boxes, index, box) {
  const longer = [...boxes, ...Array(Math.max(0, index + 1 - boxes.length)).fill(null)];
  longer[index] = box;
  return longer;
}

/** A box with these edges, rounded so that its right and bottom edge are as exact as its corner. */
export function withEdges(box, left, top, right, bottom) {
  const [x, y] = [round4(left), round4(top)];
  return { ...box, x, y, w: round4(round4(right) - x), h: round4(round4(bottom) - y) };
}

/** `box` moved by (dx, dy), kept in the picture. */
export function moved(box, dx, dy, snap = (value) => value) {
  const [w, h] = [Math.min(box.w, 1), Math.min(box.h, 1)];
  const x = clamp(snap(box.x + dx, 0), 0, 1 - w);
  const y = clamp(snap(box.y + dy, 1), 0, 1 - h);
  return withEdges(box, x, y, x + w, y + h);
}

/** `box` with the edges named in `handle` (of "n", "s", "w", "e") at the point (x, y); the others stay. */
export function resized(box, handle, x, y, snap = (value) => value) {
  let [left, top, right, bottom] = [box.x, box.y, box.x + box.w, box.y + box.h].map((edge) => clamp(edge, 0, 1));
  [x, y] = [clamp(snap(x, 0), 0, 1), clamp(snap(y, 1), 0, 1)];
  if (handle.includes("w")) left = Math.min(x, right - SMALLEST);
  if (handle.includes("e")) right = Math.max(x, left + SMALLEST);
  if (handle.includes("n")) top = Math.min(y, bottom - SMALLEST);
  if (handle.includes("s")) bottom = Math.max(y, top + SMALLEST);
  return withEdges(box, left, top, right, bottom);
}

/** The box between two points, or null where it is too small to be meant. */
export function between(label, a, b, snap = (value) => value) {
  const [left, right] = [a[0], b[0]].map((v) => clamp(snap(v, 0), 0, 1)).sort((p, q) => p - q);
  const [top, bottom] = [a[1], b[1]].map((v) => clamp(snap(v, 1), 0, 1)).sort((p, q) => p - q);
  return right - left < SMALLEST || bottom - top < SMALLEST ? null : withEdges({ label }, left, top, right, bottom);
}

/** A copy for another subject, a little to the right and below, or to the left and above where there is no room. */
export function copied(box, label) {
  const step = (start, length) => (start + length + 0.03 <= 1 ? 0.03 : -0.03);
  const { locked, ...rest } = box;
  return moved({ ...rest, label }, step(box.x, box.w), step(box.y, box.h));
}

/** Subjects without a box, by index; `count` is the number of subjects, null where it is not known (then there is always one more). */
export function lacking(boxes, count) {
  const length = count ?? boxes.length + 1;
  return Array.from({ length }, (_, i) => i).filter((i) => !boxes[i]);
}

/** A function that puts a coordinate of axis 0 (x) or 1 (y) on the nearest line of a grid of `pixels`, the picture's edges being lines too. */
export function gridSnap(width, height, pixels) {
  return (value, axis) => {
    const step = pixels / (axis ? height : width);
    const line = Math.round(value / step) * step;
    return Math.abs(1 - value) < Math.abs(line - value) ? 1 : line;
  };
}

/** The topmost box at a point by index, small ones being above large ones; -1 where there is none. edge: how far outside counts too, [across, down]. */
export function boxAt(boxes, x, y, [across, down] = [0, 0]) {
  return stacked(boxes).findLast((i) => {
    const box = boxes[i];
    return x >= box.x - across && x <= box.x + box.w + across && y >= box.y - down && y <= box.y + box.h + down;
  }) ?? -1;
}

/** Indices of the boxes from the lowest to the topmost: large ones first, so that small ones stay visible. */
export function stacked(boxes) {
  return [...boxes.keys()].filter((i) => boxes[i]).sort((a, b) => boxes[b].w * boxes[b].h - boxes[a].w * boxes[a].h || a - b);
}
