// Warnings of nodes that are not in the graph on the screen, as in a blueprint, are shown by the front end's own notifications.
import { app } from "../../scripts/app.js";

const LIFE = 20000; // milliseconds

/** Show warnings of a node, unless its own graph is on the screen and the node shows them itself. */
export function notify(node, warnings) {
  if (!node.graph || node.graph === app.canvas?.graph) return;
  for (const detail of warnings) app.extensionManager?.toast?.add({ severity: "warn", summary: node.title, detail, life: LIFE });
}
