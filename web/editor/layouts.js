// Places for subjects that were given none, by the rules of model_patches/placement/layouts.py. A box is {x, y, w, h} in parts of the picture.

const MARGIN = 0.02; // of the picture's side: at its border and between two places
export const LAYOUTS = ["none", "row", "column", "grid", "thirds"];

const rounded = (value, digits) => Number(value.toFixed(digits));

/**
 * Boxes for the subjects without one; those that are there stay as they are. They take, in their order, the places that the given boxes cover least.
 * boxes: of every subject, null where it has none; aspect: width of the picture by its height.
 */
export function fill(boxes, layout, aspect = 1) {
  const lacking = [...boxes.keys()].filter((i) => !boxes[i]);
  if (!LAYOUTS.includes(layout) || layout === "none" || !lacking.length) return [...boxes];
  const slots = places(layout, boxes.length, aspect);
  const given = boxes.filter(Boolean);
  const covered = slots.map((slot) => rounded(given.reduce((sum, box) => sum + overlap(slot, box), 0), 6));
  const foreign = (j) => (lacking.includes(j) ? 0 : 1);
  const freest = [...slots.keys()].sort((a, b) => covered[a] - covered[b] || foreign(a) - foreign(b) || a - b);
  const chosen = freest.slice(0, lacking.length).sort((a, b) => a - b);
  return boxes.map((box) => box ?? slots[chosen.shift()]);
}

/** The places of a layout, in the order of the subjects; none overlaps another. */
export function places(layout, count, aspect = 1) {
  const each = (make) => Array.from({ length: count }, (_, i) => make(i));
  if (layout === "row") return each((i) => cell(i, count, 0, 1));
  if (layout === "column") return each((i) => cell(0, 1, i, count));
  if (layout === "thirds") {
    const [top, rows] = count <= 3 ? [1 / 3, 1] : [0, Math.ceil(count / 3)];
    return each((i) => cell([0, 2, 1][i % 3], 3, Math.floor(i / 3), rows, top));
  }
  const columns = gridColumns(count, aspect);
  const rows = Math.ceil(count / columns);
  return each((i) => {
    const row = Math.floor(i / columns);
    const spare = columns - Math.min(columns, count - row * columns); // empty cells of this row, half of them on its left
    return cell((i % columns) + spare / 2, columns, row, rows);
  });
}

/** Columns of a grid for `count` places that come nearest to squares; of two equally good numbers the larger. */
export function gridColumns(count, aspect) {
  const distortion = (columns) => rounded(Math.abs(Math.log((aspect * Math.ceil(count / columns)) / columns)), 6);
  let best = count;
  for (let columns = count - 1; columns > 0; columns--) if (distortion(columns) < distortion(best)) best = columns;
  return best;
}

/** Area that two boxes share, 1 being the whole picture. */
export function overlap(a, b) {
  const w = Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x);
  const h = Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y);
  return Math.max(w, 0) * Math.max(h, 0);
}

function cell(column, columns, row, rows, top = 0) {
  const [x, w] = part(column, columns, 0);
  const [y, h] = part(row, rows, top);
  return { x: rounded(x, 4), y: rounded(y, 4), w: rounded(w, 4), h: rounded(h, 4) };
}

function part(index, count, start) {
  const length = (1 - start - (count + 1) * MARGIN) / count;
  return [start + MARGIN + index * (length + MARGIN), length];
}
