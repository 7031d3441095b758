// What the editor knows of its node and of the run: read anew a few times a second, so that it does not matter who changed it: a widget, a link, an undo, a loaded file.
import { parse } from "./boxes.js";
import { castOf, isWired, literal, pictureInto, sizeOf, widgetOf } from "./graph.js";
import { fill } from "./layouts.js";

const remembered = new Map(); // of nodes by graph and id; an undo makes new nodes, which have the same id

/** A node's memory that outlives the node: {run: what its last run found out, selected, focused, root: the element shown, gone: when the node went}. */
export function memoryOf(node) {
  const key = `${node.graph?.id ?? ""}:${node.id}`;
  if (!remembered.has(key)) remembered.set(key, { run: null, selected: -1 });
  return remembered.get(key);
}

/**
 * What the node holds and what is wired into it, as plain data:
 * {text, boxes, fault, wired: the boxes come from another node, connected: there is a cast, size, exact: the size is the run's, names, photos,
 * count: subjects or null, layout, ghosts, background}
 */
export function read(node, app) {
  const root = app.rootGraph ?? app.graph?.rootGraph ?? app.graph;
  const { run } = memoryOf(node);
  const wired = isWired(node, "boxes");
  const text = String((wired ? literal(node, "boxes", [], root) : widgetOf(node, "boxes").value) ?? "[]");
  const { boxes, fault } = parse(text);
  const live = sizeOf(node, root);
  const size = live ?? run?.size ?? ["width", "height"].map((name) => Number(widgetOf(node, name)?.value) || 512);
  const cast = castOf(node, root) ?? (isWired(node, "cast") ? run?.names.map(() => ({})) : null) ?? null;
  const known = run && run.names.length === cast?.length ? run : null; // a run of another cast says nothing about this one
  const length = Math.max(cast?.length ?? 0, boxes.length);
  const names = Array.from({ length }, (_, i) => String(cast?.[i]?.name ?? known?.names[i] ?? boxes[i]?.label ?? ""));
  const photos = names.map((_, i) => cast?.[i]?.photo ?? null);
  return {
    text, boxes, fault, wired, connected: isWired(node, "cast"), size, exact: Boolean(live || run), names, photos, count: cast ? cast.length : null,
    layout: literal(node, "layout", [], root),
    ghosts: cast && !fault ? ghosts(node, boxes, cast.length, size, known, root) : [],
    background: isWired(node, "background") ? pictureInto(node, "background", [], root) ?? run?.background ?? null : null,
  };
}

/** Boxes of subjects that have none in the text: where others may come from a wire, those of the last run, else the layout's. */
function ghosts(node, boxes, count, [width, height], run, root) {
  const given = Array.from({ length: count }, (_, i) => boxes[i] ?? null);
  const before = isWired(node, "bounding_boxes") || isWired(node, "boxes");
  if (before) return given.map((box, i) => box ?? run?.boxes[i] ?? null);
  return fill(given, literal(node, "layout", [], root), width / height);
}

/** Writes the boxes where the node keeps them. */
export function writeText(node, text) {
  const widget = widgetOf(node, "boxes");
  widget.value = text;
  widget.callback?.(text);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** Lets the host take its step for undo now; it sees clicks and keys by itself, but not a finger's drag. */
export function snapshot(app) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** What a run of the node sent along; see EditorPreview in nodes/place_subjects.py. */
export function keepRun(node, output) {
  const [text] = output?.troupe_places ?? [];
  const found = text && JSON.parse(text);
  if (found) memoryOf(node).run = { names: found.names, boxes: found.boxes, size: found.size, background: found.background ?? null };
}
