// What a node's result depends on in the graph, as one text: two equal texts give the same result.
import { origin } from "./editor/graph.js";

const MOST = 200; // nodes looked at
const UNTOLD = ["seed", "noise_seed"];
const CONTROL = "control_after_generate"; // after each run the front end changes the value above it

/** The values and wires of a node and of every node upstream of it. */
export function settingsUpstream(node, root) {
  const waiting = [{ node, path: [] }];
  const seen = new Map();
  while (waiting.length && seen.size < MOST) {
    const at = waiting.shift();
    if (seen.has(at.node)) continue;
    const wires = [];
    for (const input of at.node.inputs ?? []) {
      const from = origin(at.node, input.name, at.path, root);
      if (!from) continue;
      wires.push([input.name, from.node ? [from.node.id, from.slot] : from.value]);
      if (from.node) waiting.push(from);
    }
    seen.set(at.node, [at.node.id, at.node.mode, values(at.node), wires]);
  }
  return JSON.stringify([...seen.values()]);
}

function values(node) {
  const all = node.widgets ?? [];
  const isControlled = (widget) => widget.linkedWidgets?.some(({ name }) => name === CONTROL) || all[all.indexOf(widget) + 1]?.name === CONTROL;
  const told = all.filter((widget) => widget.serialize !== false && widget.name !== CONTROL && !UNTOLD.includes(widget.name) && !isControlled(widget));
  return told.filter(({ value }) => ["string", "number", "boolean"].includes(typeof value)).map(({ name, value }) => [name, value]);
}
