// In Quick Subjects the field for a name comes with its photo: name_2 to name_4 are shown once their photo is connected, or while they hold a name.
import { app } from "../../scripts/app.js";
import { isWired, widgetOf } from "./editor/graph.js";

const NODE = "TroupeQuickSubjects";
const LOOK = 300; // milliseconds between two looks at the wires
const NUMBERS = [2, 3, 4]; // of the subjects that may be absent

/** Shows the names that are needed; the node gets as high as that takes. */
function look(node) {
  if (!node.graph) return;
  let changed = false;
  for (const number of NUMBERS) {
    const widget = widgetOf(node, `name_${number}`);
    if (!widget) continue;
    const hidden = !isWired(node, `image_${number}`) && !isWired(node, `name_${number}`) && !String(widget.value ?? "").trim();
    if (Boolean(widget.hidden) === hidden) continue;
    widget.hidden = hidden;
    widget.options.hidden = hidden;
    if (hidden) widget.computeSize = () => [0, -4]; // front ends of 2025 leave room for hidden widgets, and 4 pixels between two
    else delete widget.computeSize;
    changed = true;
  }
  if (!changed) return;
  if (!window.LiteGraph?.vueNodesMode) node.setSize?.([node.size[0], node.computeSize()[1]]);
  node.graph.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "troupe.quick_subjects",
  nodeCreated(node) {
    if (node.constructor?.comfyClass !== NODE) return;
    const timer = setInterval(() => {
      try {
        look(node);
      } catch (error) {
        clearInterval(timer);
        console.error("Troupe: the names of Quick Subjects are always shown.", error);
      }
    }, LOOK);
    const before = node.onRemoved;
    node.onRemoved = function (...given) {
      clearInterval(timer);
      return before?.apply(this, given);
    };
  },
});
