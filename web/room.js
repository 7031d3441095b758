// How far a node's messages may reach down before they would cover the next node.
const TITLE = 30; // pixels above a node's `pos`
const GAP = 10; // between a node and the next
const MARGINS = 20; // that the canvas puts around an element
const LEAST = 68; // pixels of messages that are shown in any case: three lines

/** Pixels that the list of messages may take in its node; Infinity where no node lies below. added: by which this list makes the node taller on the canvas. */
export function roomBelow(node, list, added) {
  const [x, y] = node.pos;
  const [width, height] = node.size;
  const element = window.LiteGraph?.vueNodesMode ? list.closest("[data-node-id]") : null; // Nodes 2.0 keeps its heights in the page
  const bottom = element ? y - TITLE + element.offsetHeight - list.offsetHeight : y + height - added + MARGINS;
  const tops = (node.graph?._nodes ?? node.graph?.nodes ?? [])
    .filter((other) => other !== node && other.pos[0] < x + width && x < other.pos[0] + other.size[0])
    .map((other) => other.pos[1] - TITLE)
    .filter((top) => top >= bottom - TITLE);
  return Math.max(Math.min(...tops) - bottom - GAP, LEAST);
}
