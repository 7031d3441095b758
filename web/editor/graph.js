// Finds out what is wired into a node, as the host will when it runs: through reroutes, bypassed nodes and subgraphs; a muted node gives nothing.

const MUTED = 2;
const BYPASSED = 4;
const DEEPEST = 100; // links followed, so that a graph in a circle ends
const ENTRANCE = -10; // the host's id of the node that a subgraph's inputs come in by
const EXIT = -20; // and of the one that its outputs leave by

/**
 * {node, slot, path} that input `name` of `node` comes from; {value} where it is a widget on a subgraph's face; null where nothing comes.
 * path: the subgraph nodes entered on the way; root: the outermost graph, where the node of a subgraph is looked for.
 */
export function origin(node, name, path = [], root = null) {
  const index = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return index < 0 ? null : follow(node, index, { path, root, left: DEEPEST });
}

export const isWired = (node, name) => isConnected(node, node.inputs?.findIndex((input) => input.name === name) ?? -1);

function isConnected(node, index) {
  if (index < 0) return false;
  return node.isInputConnected?.(index) ?? (node.inputs?.[index]?.link ?? null) !== null; // older front ends keep the link's id in the slot
}

/** The link into an input. A subgraph's node has a getInputLink of another meaning, so the one of all nodes is asked. */
export function linkInto(node, index) {
  const read = globalThis.LiteGraph?.LGraphNode?.prototype?.getInputLink;
  return read && node.graph ? (read.call(node, index) ?? null) : linkOf(node.graph, node.inputs?.[index]?.link);
}

function follow(node, index, way) {
  const link = index < 0 ? null : linkInto(node, index);
  return link && way.left > 0 ? settle(node.graph, link, { ...way, left: way.left - 1 }) : null;
}

function linkOf(graph, id) {
  if (id === null || id === undefined) return null;
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

function settle(graph, link, way) {
  if (Number(link.origin_id) === ENTRANCE) return climb(graph, link.origin_slot, way);
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return null;
  if (node.mode === BYPASSED) return follow(node, through(node, link.origin_slot), way);
  if (node.subgraph) return enter(node, link.origin_slot, way);
  if (/^Reroute/.test(node.type ?? "")) return follow(node, 0, way);
  return { node, slot: link.origin_slot, path: way.path };
}

/** The input that a bypassed node hands on to its output `slot`: the one beside it if the types fit, else the first of that type, else the first that fits. */
function through(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const inputs = node.inputs ?? [];
  const fits = (input) => globalThis.LiteGraph?.isValidConnection?.(input.type, type) ?? input.type === type;
  if (inputs[slot] && fits(inputs[slot])) return slot;
  const exact = inputs.findIndex((input) => input.type === type);
  return exact >= 0 ? exact : inputs.findIndex(fits);
}

function enter(node, slot, way) {
  const link = linkOf(node.subgraph, node.subgraph.outputs?.[slot]?.linkIds?.[0]);
  return link ? settle(node.subgraph, link, { ...way, left: way.left - 1, path: [...way.path, node] }) : null;
}

/** From inside a subgraph to what is wired into its node. Where the editor itself is inside, the first node of this subgraph counts. */
function climb(graph, slot, way) {
  const outer = way.path.at(-1) ?? nodeOf(graph, way.root);
  const input = outer?.inputs?.[slot];
  if (!input) return null;
  if (isConnected(outer, slot)) return follow(outer, slot, { ...way, path: way.path.slice(0, -1) });
  const widget = outer.widgets?.find((widget) => widget.name === (input.widget?.name ?? input.name));
  return widget ? { value: widget.value } : null;
}

function nodeOf(subgraph, graph, left = DEEPEST) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    if (node.subgraph === subgraph) return node;
    const deeper = node.subgraph && left > 0 ? nodeOf(subgraph, node.subgraph, left - 1) : null;
    if (deeper) return deeper;
  }
  return null;
}

/** The nodes that an output goes to, {node, path}: through reroutes, bypassed nodes and into and out of subgraphs. */
export function targets(node, slot, path = [], root = null, left = DEEPEST) {
  return left > 0 ? leading(node.graph, node.outputs?.[slot]?.links, path, root, left - 1) : [];
}

function leading(graph, ids, path, root, left) {
  return [...(ids ?? [])].flatMap((id) => {
    const link = linkOf(graph, id);
    return link ? arrive(graph, link, path, root, left) : [];
  });
}

function arrive(graph, link, path, root, left) {
  if (left <= 0) return [];
  const slot = link.target_slot;
  if (Number(link.target_id) === EXIT) {
    const outer = path.at(-1) ?? nodeOf(graph, root);
    return outer ? targets(outer, slot, path.slice(0, -1), root, left) : [];
  }
  const node = graph.getNodeById(link.target_id);
  if (!node || node.mode === MUTED) return [];
  if (node.mode === BYPASSED) return [...(node.outputs?.keys() ?? [])].filter((out) => through(node, out) === slot).flatMap((out) => targets(node, out, path, root, left));
  if (node.subgraph) return leading(node.subgraph, node.subgraph.inputs?.[slot]?.linkIds, [...path, node], root, left);
  if (/^Reroute/.test(node.type ?? "")) return targets(node, 0, path, root, left);
  return [{ node, path }];
}

export const classOf = (node) => node.comfyClass ?? node.constructor?.comfyClass ?? node.type;
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** The value of a widget, or of the primitive node wired in its place; undefined where only a run can tell. */
export function literal(node, name, path, root, left = 10) {
  if (!isWired(node, name)) return widgetOf(node, name)?.value;
  const from = origin(node, name, path, root);
  if (!from || left <= 0) return undefined;
  if ("value" in from) return from.value;
  if (!/^Primitive/.test(classOf(from.node) ?? "")) return undefined;
  return widgetOf(from.node, "value") ? literal(from.node, "value", from.path, root, left - 1) : undefined;
}

/**
 * The subjects of the cast wired into `node`: {name, undefined where only a run can tell; photo: see `pictureInto`}; null where nothing is wired,
 * or a node of another pack makes the cast.
 */
export function castOf(node, root) {
  const subjects = [];
  let at = origin(node, "cast", [], root);
  if (!at) return null;
  for (let left = DEEPEST; at && left > 0; left--) {
    const kind = at.node ? classOf(at.node) : null;
    if (kind === "TroupeAddSubject") subjects.unshift({ name: literal(at.node, "name", at.path, root), photo: pictureInto(at.node, "image", at.path, root) });
    else if (kind !== "TroupePlaceSubjects") return null;
    at = origin(at.node, "cast", at.path, root);
  }
  return subjects;
}

/** [width, height] of the picture; null where only a run can tell. */
export function sizeOf(node, root) {
  let [from, path] = [node, []];
  if (isWired(node, "latent")) {
    const at = origin(node, "latent", [], root);
    if (!at?.node || !/^Empty.*Latent/.test(classOf(at.node) ?? "")) return null;
    [from, path] = [at.node, at.path];
  }
  const size = ["width", "height"].map((name) => Number(literal(from, name, path, root)));
  return size.every((side) => Number.isFinite(side) && side > 0) ? size : null;
}

/** {filename, subfolder, type} of the picture wired into an input, where it is a file that a Load Image node names; null elsewhere. */
export function pictureInto(node, name, path, root) {
  const at = origin(node, name, path, root);
  if (!at?.node || !/^LoadImage(Output)?$/.test(classOf(at.node) ?? "") || at.slot !== 0) return null;
  const value = literal(at.node, "image", at.path, root);
  const parts = typeof value === "string" && value.match(/^(?:(.*)[\\/])?([^\\/]+?)(?: \[(input|output|temp)\])?$/);
  return parts ? { filename: parts[2], subfolder: parts[1] ?? "", type: parts[3] ?? "input" } : null;
}
