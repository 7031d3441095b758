// The keyboard on the editor.
import { moved, placed, resized } from "./boxes.js";

export const STEP = 8; // pixels of the picture: one cell of the latent, less changes nothing
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Does what a key means; true where it meant something, so that the host must not see it (its Delete deletes the node). */
export function pressed(editor, event) {
  const { selected, boxes } = editor;
  const box = boxes[selected];
  const command = event.ctrlKey || event.metaKey;
  if (event.key in ARROWS) return box && editor.editable ? arrow(editor, event, box, command) : editor.focused;
  if (event.key === "Delete" || event.key === "Backspace") {
    if (box) editor.remove();
    return true;
  }
  if (event.key === "Escape") return escape(editor);
  if (command && event.key.toLowerCase() === "d") return act(editor.duplicate());
  if (command || event.altKey) return false;
  if (event.key.toLowerCase() === "l" && box) return act(editor.toggleLock());
  if (/^[1-9]$/.test(event.key)) return act(editor.choose(Number(event.key) - 1));
  return false;
}

const act = () => true;

function arrow(editor, event, box, resize) {
  if (box.locked) return act(editor.say("This box is locked."));
  const [across, down] = ARROWS[event.key];
  const [width, height] = editor.size;
  const step = (editor.grid || STEP) * (event.shiftKey ? 10 : 1);
  const [dx, dy] = [(across * step) / width, (down * step) / height];
  const changed = resize ? resized(box, "se", box.x + box.w + dx, box.y + box.h + dy) : moved(box, dx, dy);
  editor.commit(placed(editor.boxes, editor.selected, changed), editor.selected, event.repeat);
  return true;
}

function escape(editor) {
  if (editor.pointer.drag) editor.pointer.stop();
  else if (editor.selected >= 0) editor.select(-1);
  else return false;
  return true;
}
