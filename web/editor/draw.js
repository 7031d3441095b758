// Draws the picture: background, grid, places of the layout, boxes with number and name, handles. It reads a view and changes nothing.
import { gridSnap, stacked } from "./boxes.js";
import { colourOf, inkOn } from "./palette.js";

export const HANDLES = { nw: [0, 0], n: [0.5, 0], ne: [1, 0], e: [1, 0.5], se: [1, 1], s: [0.5, 1], sw: [0, 1], w: [0, 0.5] };
const FONT = 12; // CSS pixels
const HANDLE = 8; // CSS pixels: a handle's side
const PHOTO = 48; // CSS pixels: a photo in a box is at most so large

/**
 * view: {width, height: of the canvas in CSS pixels, boxes, ghosts: boxes that would be there without having been drawn, selected: index or -1,
 * names, photos (images, or null): of the subjects, count: how many subjects or null, grid: {width, height, pixels} or null,
 * image: or null, ink: colour of lines on the background}
 */
export function paint(context, view) {
  context.clearRect(0, 0, view.width, view.height);
  if (view.image) context.drawImage(view.image, 0, 0, view.width, view.height);
  if (view.grid) drawGrid(context, view);
  for (const i of stacked(view.ghosts)) if (!view.boxes[i]) drawGhost(context, view, i);
  const order = stacked(view.boxes);
  for (const i of order) drawBox(context, view, i);
  const taken = [];
  for (const i of [...order].sort((a, b) => a - b)) drawLabel(context, view, i, taken);
  if (view.boxes[view.selected] && !view.boxes[view.selected].locked) drawHandles(context, view);
}

const rectangle = (view, box) => [box.x * view.width, box.y * view.height, box.w * view.width, box.h * view.height];
const stranger = (view, i) => view.count !== null && i >= view.count; // a box of no subject
const colour = (view, i) => (stranger(view, i) ? "#808080" : colourOf(i));

function drawGrid(context, view) {
  const { width, height, pixels } = view.grid;
  const snap = gridSnap(width, height, pixels);
  context.strokeStyle = view.ink;
  context.globalAlpha = 0.18;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = pixels; x < width && snap(x / width, 0) < 1; x += pixels) line(context, (x / width) * view.width, 0, 0, view.height);
  for (let y = pixels; y < height && snap(y / height, 1) < 1; y += pixels) line(context, 0, (y / height) * view.height, view.width, 0);
  context.stroke();
  context.globalAlpha = 1;
}

function line(context, x, y, dx, dy) {
  context.moveTo(x, y);
  context.lineTo(x + dx, y + dy);
}

function drawGhost(context, view, i) {
  const [x, y, w, h] = rectangle(view, view.ghosts[i]);
  const frame = [x + 0.75, y + 0.75, w - 1.5, h - 1.5];
  outline(context, view, frame, 1.5);
  context.setLineDash([5, 4]);
  context.lineWidth = 1.5;
  context.strokeStyle = colourOf(i);
  context.strokeRect(...frame);
  context.setLineDash([]);
  context.font = `${FONT}px sans-serif`;
  context.fillStyle = view.ink;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(fitted(context, i, view.names[i], w - 8), x + w / 2, y + h / 2);
}

/** A faint line around a frame, so that yellow is seen on light and blue on dark. */
function outline(context, view, frame, width) {
  context.globalAlpha = 0.3;
  context.lineWidth = width + 1.5;
  context.strokeStyle = view.ink;
  context.strokeRect(...frame);
  context.globalAlpha = 1;
}

function drawBox(context, view, i) {
  const [x, y, w, h] = rectangle(view, view.boxes[i]);
  const chosen = i === view.selected;
  context.fillStyle = colour(view, i);
  context.globalAlpha = chosen ? 0.3 : 0.18;
  context.fillRect(x, y, w, h);
  context.globalAlpha = 1;
  drawPhoto(context, view.photos?.[i], [x, y, w, h]);
  const width = chosen ? 3 : 2;
  const frame = [x + width / 2, y + width / 2, Math.max(w - width, 1), Math.max(h - width, 1)];
  outline(context, view, frame, width);
  context.lineWidth = width;
  context.strokeStyle = colour(view, i);
  context.setLineDash(stranger(view, i) ? [3, 3] : []);
  context.strokeRect(...frame);
  context.setLineDash([]);
}

/** The subject's photo, its middle square, in the box's lower right corner; none in a small box. */
function drawPhoto(context, photo, [x, y, w, h]) {
  const side = Math.min(w, h, 3 * PHOTO) / 3;
  if (!photo || side < PHOTO / 3) return;
  const part = Math.min(photo.naturalWidth, photo.naturalHeight);
  const corner = [(photo.naturalWidth - part) / 2, (photo.naturalHeight - part) / 2];
  context.drawImage(photo, ...corner, part, part, x + w - side - 5, y + h - side - 5, side, side);
}

/** Number and name at the box's corner, moved to where they stay in the picture and hide no label of `taken`. */
function drawLabel(context, view, i, taken) {
  const box = view.boxes[i];
  const [left, top, w] = rectangle(view, box);
  context.font = `${FONT}px sans-serif`;
  const lock = box.locked ? FONT : 0;
  const text = fitted(context, i, view.names[i], Math.max(w, view.width / 5) - 8 - lock);
  const width = Math.min(context.measureText(text).width + 8 + lock, view.width);
  const height = FONT + 5;
  const beside = i === view.selected ? HANDLE : 0; // so that the corner's handle covers no number
  const x = Math.max(Math.min(left + beside, view.width - width), 0);
  const meets = (y) => taken.some((other) => x < other.x + other.width && other.x < x + width && y < other.y + height && other.y < y + height);
  const start = Math.max(Math.min(top, view.height - height), 0);
  const rows = [];
  for (let y = start; y <= view.height - height; y += height) rows.push(y);
  for (let y = start; y >= 0; y -= height) rows.push(y);
  const y = rows.find((row) => !meets(row)) ?? start;
  taken.push({ x, y, width });
  context.fillStyle = colour(view, i);
  context.fillRect(x, y, width, height);
  context.fillStyle = inkOn(colour(view, i));
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(text, x + 4, y + height / 2 + 0.5);
  if (lock) drawLock(context, x + width - FONT - 1, y + 3);
}

function drawLock(context, x, y) {
  context.fillRect(x + 1, y + 5, 9, 6);
  context.strokeStyle = context.fillStyle;
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(x + 5.5, y + 4.5, 2.8, Math.PI, 0);
  context.stroke();
}

function drawHandles(context, view) {
  const [x, y, w, h] = rectangle(view, view.boxes[view.selected]);
  const small = Math.min(w, h) < 40; // then the corners alone, so that the box can still be taken
  context.fillStyle = "#ffffff";
  context.strokeStyle = "#000000";
  context.lineWidth = 1;
  for (const [name, [across, down]] of Object.entries(HANDLES)) {
    if (small && name.length === 1) continue;
    const at = [x + across * w, y + down * h];
    const [left, top] = [[at[0], view.width], [at[1], view.height]].map(([middle, most]) => Math.min(Math.max(middle - HANDLE / 2, 0), most - HANDLE));
    context.fillRect(left, top, HANDLE, HANDLE);
    context.strokeRect(left + 0.5, top + 0.5, HANDLE - 1, HANDLE - 1);
  }
}

/** "2 red fox", shortened to a width in CSS pixels; the number is always whole. */
function fitted(context, i, name, width) {
  const number = `${i + 1}`;
  const whole = name ? `${number} ${name}` : number;
  if (context.measureText(whole).width <= width) return whole;
  for (let length = name.length - 1; length > 0; length--) {
    const text = `${number} ${name.slice(0, length).trimEnd()}…`;
    if (context.measureText(text).width <= width) return text;
  }
  return number;
}
