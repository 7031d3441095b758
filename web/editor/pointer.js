// Mouse, pen and finger on the canvas. A drag works on a draft; the editor's boxes change once, when it ends.
import { HANDLES } from "./draw.js";
import { between, boxAt, moved, placed, resized } from "./boxes.js";

const EDGE = 2; // CSS pixels outside of a box that still are its corner
const REACH = { mouse: 7, pen: 10, touch: 18 }; // CSS pixels around a handle

/** Listens on `canvas`. `editor` has: boxes, selected, editable, target(), snap(event), nameOf(i), draft, select(i), commit(boxes, i), repaint(), say(sentence). */
export class Pointer {
  constructor(canvas, editor, guarded) {
    this.canvas = canvas;
    this.editor = editor;
    this.drag = null;
    const on = (type, handler) => canvas.addEventListener(type, guarded((event) => handler.call(this, event)));
    on("pointerdown", this.down);
    on("pointermove", this.move);
    on("pointerup", this.up);
    on("pointercancel", this.cancel);
    on("contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** Where in the picture an event was, and how long one CSS pixel is there. The rectangle is measured after the graph's zoom, so this holds at any zoom. */
  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - left) / width, y: (event.clientY - top) / height, pixel: [1 / width, 1 / height] };
  }

  down(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    event.preventDefault(); // no text selection, and no mouse events after a touch
    this.canvas.focus({ preventScroll: true });
    if (this.drag || !event.isPrimary || !this.editor.editable) return;
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.place(event);
    this.drag = { id: event.pointerId, at, ...this.meant(at, event) };
    if (["move", "hold", "resize"].includes(this.drag.kind)) this.editor.select(this.drag.index);
  }

  /** What a press at this place begins: resize, move, draw, hold (of a locked box, which a drag draws over), or nothing. */
  meant(at, event) {
    const { boxes } = this.editor;
    const { handle, index } = this.handleAt(at, event);
    if (handle) return { kind: "resize", handle, index, box: boxes[index] };
    const target = this.editor.target();
    const hit = boxAt(boxes, at.x, at.y);
    if (hit >= 0 && !(this.armed || event.ctrlKey || event.metaKey)) {
      return boxes[hit].locked ? { kind: "hold", index: hit, target } : { kind: "move", index: hit, box: boxes[hit] };
    }
    return { kind: "draw", index: target, target, hit };
  }

  /** {handle, index} of the box that a press here resizes: the chosen box at its handles, another box at its corners; {} where there is none. */
  handleAt(at, event) {
    const { boxes, selected } = this.editor;
    const handle = this.nearHandle(boxes[selected], at, event);
    if (handle) return { handle, index: selected };
    const hit = boxAt(boxes, at.x, at.y, at.pixel.map((pixel) => EDGE * pixel));
    const corner = this.armed || event.ctrlKey || event.metaKey ? null : this.nearHandle(boxes[hit], at, event);
    return corner?.length === 2 ? { handle: corner, index: hit } : {};
  }

  /** A subject without a box has been chosen: a press anywhere begins its box. */
  get armed() { return this.editor.selected >= 0 && !this.editor.boxes[this.editor.selected]; }

  nearHandle(box, at, event) {
    if (!box || box.locked) return null;
    const reach = REACH[event.pointerType] ?? REACH.mouse;
    const small = Math.min(box.w / at.pixel[0], box.h / at.pixel[1]) < 40;
    const near = ([name, [across, down]]) => !(small && name.length === 1)
      && Math.abs(at.x - box.x - across * box.w) <= reach * at.pixel[0] && Math.abs(at.y - box.y - down * box.h) <= reach * at.pixel[1];
    const corners = Object.entries(HANDLES).sort(([a], [b]) => b.length - a.length); // where both are near, the corner
    return corners.find(near)?.[0] ?? null;
  }

  move(event) {
    if (!this.drag) return this.hover(event);
    if (event.pointerId !== this.drag.id) return;
    event.stopPropagation();
    const { drag, editor } = this;
    const at = this.place(event);
    const far = Math.abs(at.x - drag.at.x) > 3 * at.pixel[0] || Math.abs(at.y - drag.at.y) > 3 * at.pixel[1];
    drag.far ||= far; // a trembling hand is no drag
    if (!drag.far) return;
    const box = this.dragged(at, editor.snap(event));
    const index = drag.kind === "hold" ? drag.target : drag.index;
    editor.draft = box && index >= 0 ? placed(editor.boxes, index, box) : null;
    editor.draftIndex = index;
    editor.repaint();
  }

  /** The box that this drag makes, with the pointer at `at`; null where there is none. */
  dragged(at, snap) {
    const { kind, box, handle, index, target } = this.drag;
    const start = this.drag.at;
    if (kind === "resize") return resized(box, handle, this.edge(box, handle, at, 0), this.edge(box, handle, at, 1), snap);
    if (kind === "move") return moved(box, at.x - start.x, at.y - start.y, snap);
    const subject = kind === "hold" ? target : index;
    return subject < 0 ? null : between(this.editor.nameOf(subject), [start.x, start.y], [at.x, at.y], snap);
  }

  /** The dragged edge, on an axis: as far from the pointer as it was at the start. */
  edge(box, handle, at, axis) {
    const [side, length, low] = axis ? ["y", "h", "n"] : ["x", "w", "w"];
    const from = handle.includes(low) ? box[side] : box[side] + box[length];
    return from + at[side] - this.drag.at[side];
  }

  up(event) {
    if (!this.drag || event.pointerId !== this.drag.id) return;
    event.stopPropagation();
    const { drag, editor } = this;
    const { draft } = editor;
    this.stop();
    if (draft) editor.commit(draft, drag.kind === "hold" ? drag.target : drag.index);
    else if (drag.kind === "draw" && !drag.far) editor.select(drag.hit);
    else if (drag.kind === "draw" && drag.target < 0) editor.say("Every subject has a box. Delete one, or add a subject.");
  }

  cancel() {
    if (this.drag) this.stop();
  }

  /** Ends a drag; nothing of it remains. */
  stop() {
    this.drag = null;
    this.editor.draft = null;
    this.editor.repaint();
  }

  hover(event) {
    const { boxes, editable } = this.editor;
    const at = this.place(event);
    const { handle } = editable ? this.handleAt(at, event) : {};
    const hit = boxAt(boxes, at.x, at.y);
    const still = !editable || (this.editor.target() < 0 && hit < 0);
    this.canvas.style.cursor = handle ? CURSORS[handle] : still ? "default" : hit >= 0 && !this.armed && !boxes[hit].locked ? "move" : "crosshair";
  }
}

const CURSORS = { n: "ns-resize", s: "ns-resize", e: "ew-resize", w: "ew-resize", nw: "nwse-resize", se: "nwse-resize", ne: "nesw-resize", sw: "nesw-resize" };
