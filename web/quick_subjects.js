// Quick Subjects grows as photos are connected: the socket of the next photo appears, and the field for a name comes with its photo.
// Two photos are always offered. A socket or a field that holds something is never hidden.
import { app } from "../../scripts/app.js";
import { chain } from "./chain.js";
import { isWired, linkInto, widgetOf } from "./editor/graph.js";

const NODE = "TroupeQuickSubjects";
const LOOK = 300; // milliseconds between two looks at the wires
const NUMBERS = [2, 3, 4]; // of the subjects that may be absent
const OFFERED = 2; // photos of a new node
const KEPT = ["shape", "tooltip", "label", "localized_name"]; // of a socket that is shown again

const isNamed = (node, number) => isWired(node, `name_${number}`) || Boolean(String(widgetOf(node, `name_${number}`)?.value ?? "").trim());

/** Shows the photos and names that are needed; the node gets as high as that takes. inputs: all that it was made with. */
function look(node, inputs) {
  if (!node.graph) return;
  const changes = [...NUMBERS.map((number) => showName(node, number)), showPhotos(node, inputs)];
  if (!changes.includes(true)) return;
  if (!window.LiteGraph?.vueNodesMode) node.setSize?.([node.size[0], node.computeSize()[1]]);
  node.graph.setDirtyCanvas?.(true, true);
}

function showName(node, number) {
  const widget = widgetOf(node, `name_${number}`);
  if (!widget) return false;
  const hidden = !isWired(node, `image_${number}`) && !isNamed(node, number);
  if (Boolean(widget.hidden) === hidden) return false;
  widget.hidden = hidden;
  widget.options.hidden = hidden;
  if (hidden) widget.computeSize = () => [0, -4]; // front ends of 2025 leave room for hidden widgets, and 4 pixels between two
  else delete widget.computeSize;
  return true;
}

function showPhotos(node, inputs) {
  const last = Math.max(OFFERED, ...NUMBERS.map((number) => (isWired(node, `image_${number}`) ? number + 1 : isNamed(node, number) ? number : 0)));
  const changed = NUMBERS.filter((number) => {
    const name = `image_${number}`;
    const index = node.inputs.findIndex((input) => input.name === name);
    if (index < 0 === number > last) return false;
    if (index < 0) insert(node, inputs, name);
    else node.removeInput(index);
    return true;
  });
  return changed.length > 0;
}

/** Puts a socket back, before the first of those that followed it; the wires of these go with them. */
function insert(node, inputs, name) {
  const index = inputs.findIndex((input) => input.name === name);
  const slot = inputs[index];
  const following = new Set(inputs.slice(index + 1).map((input) => input.name));
  const before = node.inputs.findIndex((input) => following.has(input.name));
  const added = node.addInput(name, slot.type, Object.fromEntries(KEPT.filter((key) => slot[key] !== undefined).map((key) => [key, slot[key]])));
  if (before < 0) return;
  const links = node.inputs.map((_, at) => linkInto(node, at));
  node.inputs.splice(node.inputs.indexOf(added), 1);
  node.inputs.splice(before, 0, added);
  for (let at = links.length - 1; at >= before; at--) if (links[at]) links[at].target_slot = at + 1; // from the last, for a socket takes one wire
}

function attach(node) {
  const inputs = [...(node.inputs ?? [])];
  const attempt = () => {
    try {
      look(node, inputs);
    } catch (error) {
      clearInterval(timer);
      console.error("Troupe: Quick Subjects does not show or hide its fields any more.", error);
    }
  };
  const timer = setInterval(attempt, LOOK);
  // At once where the host says so, so that the file that it compares for undo is the one with these fields.
  chain(node, "onGraphConfigured", attempt);
  chain(node, "onConnectionsChange", () => queueMicrotask(attempt)); // after all changes of one gesture
  chain(node, "onRemoved", () => clearInterval(timer));
}

app.registerExtension({
  name: "troupe.quick_subjects",
  nodeCreated(node) {
    if (node.constructor?.comfyClass === NODE) attach(node);
  },
});
