// Warnings of nodes that are not in the graph on the screen, as in a blueprint, are shown by the front end's own notifications.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LIFE = 20000; // milliseconds

const earlier = new WeakMap(); // node -> its warnings when it ran last
let present = new Map(); // node -> its warnings in this run

/** Show warnings of a node that it did not have when it ran last, unless its own graph is on the screen and the node shows them itself. */
export function notify(node, warnings) {
  if (!present.has(node)) present.set(node, new Set());
  const told = present.get(node);
  const fresh = warnings.filter((text) => !told.has(text) && !earlier.get(node)?.has(text));
  for (const text of warnings) told.add(text);
  if (!node.graph || node.graph === app.canvas?.graph) return;
  for (const detail of fresh) app.extensionManager?.toast?.add({ severity: "warn", summary: node.title, detail, life: LIFE });
}

api.addEventListener("execution_start", () => {
  for (const [node, warnings] of present) earlier.set(node, warnings);
  present = new Map();
});
