// Shows on every Troupe node what can be said before it runs (live.js) and what its last run has to say (`ui` output "troupe_messages" and the event "troupe.message").
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { chain } from "./chain.js";
import { classOf } from "./editor/graph.js";
import { liveLines } from "./live.js";
import { notify } from "./notices.js";
import { roomBelow } from "./room.js";
import { settingsUpstream } from "./run_settings.js";

const UI = "troupe_messages"; // see model_patches/hosts/comfyui/messages.py
const EVENT = "troupe.message";
const PICTURE = "troupe.picture";
const LOOK = 500; // milliseconds between two looks at the names
const STORE = "troupe.messages"; // in the tab's session storage: messages survive a reload of the page
const MOST = 100; // nodes whose messages are stored
// where model files are published: a name that an artist or a workflow brings is never a link; without the mark that ends a sentence
const ADDRESS = /(https:\/\/(?:huggingface\.co|github\.com)\/\S*[^\s.,;:)])/;
const NOTHING = { warnings: [], done: [], run: [], error: "", picture: null };
const EARLIER = { kind: "earlier", text: "From an earlier run, before you changed the graph:" };

const shown = new Map(); // widgets' panels by node

/** A node's place in all graphs; the id of its graph and its own. */
const keyOf = (node) => `${node.graph?.id ?? ""}:${node.id}:${classOf(node)}`;

function stored() {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]"));
  } catch {
    return new Map();
  }
}

const kept = stored();

/** What is set on a node. Messages of a run with other settings are not shown on a node that was loaded anew. */
const settingsOf = (node) => JSON.stringify(node.widgets?.filter((widget) => widget.serialize !== false).map((widget) => widget.value) ?? []);

const rootGraph = () => app.rootGraph ?? app.graph?.rootGraph ?? app.graph;
const atStart = new Map(); // settingsUpstream of each node when the present run began

function keep(node, messages) {
  const key = keyOf(node);
  kept.delete(key);
  kept.set(key, { ...messages, settings: settingsOf(node), upstream: atStart.get(node) ?? settingsUpstream(node, rootGraph()) });
  while (kept.size > MOST) kept.delete(kept.keys().next().value);
  try {
    sessionStorage.setItem(STORE, JSON.stringify([...kept]));
  } catch {
    // a full store: the messages are lost with the page
  }
  shown.get(node)?.look();
}

const messagesOf = (node) => kept.get(keyOf(node)) ?? NOTHING;

/** The messages in the order in which they are shown: {kind: "error" | "warning" | "done", text}. */
function linesOf({ warnings, done, run, error }) {
  const lines = [];
  if (error) lines.push({ kind: "error", text: error });
  for (const text of warnings) lines.push({ kind: "warning", text });
  for (const { warning, text } of run) if (warning) lines.push({ kind: "warning", text });
  for (const text of done) lines.push({ kind: "done", text });
  for (const { warning, text } of run) if (!warning) lines.push({ kind: "done", text });
  return lines;
}

/** The lines of a node's last run; where the graph has changed since, they say so. */
function lastRunOf(node) {
  const lines = linesOf(messagesOf(node));
  const { picture, upstream } = messagesOf(node);
  const isEarlier = (lines.length > 0 || picture) && upstream !== undefined && upstream !== settingsUpstream(node, rootGraph());
  return isEarlier ? [EARLIER, ...lines.map((line) => ({ ...line, isEarlier }))] : lines;
}

/** A sentence as what a line holds: each address in it is a link with the name of what is there. */
function withLinks(text) {
  return text.split(ADDRESS).map((piece, i) => {
    if (i % 2 === 0) return piece;
    const link = document.createElement("a");
    const { pathname, host } = new URL(piece);
    Object.assign(link, { href: piece, title: piece, target: "_blank", rel: "noopener" });
    link.textContent = pathname.split("/").filter(Boolean).pop() ?? host;
    return link;
  });
}

/** The messages of one node. */
class Panel {
  constructor(node) {
    this.node = node;
    this.seen = "";
    this.isNew = true;
    this.height = 0;
    this.added = 0; // pixels by which the node is taller than without messages
    this.root = document.createElement("div");
    this.root.className = "troupe-messages";
    this.root.setAttribute("role", "status");
    this.list = document.createElement("ul");
    this.list.dataset.captureWheel = "true"; // Nodes 2.0: the wheel scrolls a list that was clicked, and zooms the graph elsewhere
    this.picture = document.createElement("img");
    this.picture.addEventListener("load", () => this.fit());
    this.root.append(this.list, this.picture);
    this.widget = node.addDOMWidget("messages", "troupe_messages", this.root, {
      getValue: () => "", setValue: () => {}, getMinHeight: () => this.height, getMaxHeight: () => this.height, hideOnZoom: true, serialize: false,
    });
    this.widget.serialize = false;
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.list);
    this.show(false);
  }

  look() {
    const { node } = this;
    if (!node.graph) return;
    if (this.isNew && kept.has(keyOf(node)) && kept.get(keyOf(node)).settings !== settingsOf(node)) kept.delete(keyOf(node));
    this.isNew = false;
    const lines = [...liveLines(node, rootGraph(), nodeOf), ...lastRunOf(node)];
    const { picture } = messagesOf(node);
    const seen = JSON.stringify([lines, picture]);
    if (seen === this.seen) return;
    this.seen = seen;
    this.list.replaceChildren(...lines.map(({ kind, text, isEarlier }) => {
      const line = document.createElement("li");
      line.className = `troupe-${kind}`;
      line.classList.toggle("troupe-before", Boolean(isEarlier));
      line.append(...withLinks(text));
      return line;
    }));
    this.picture.hidden = !picture;
    if (picture) this.picture.src = api.apiURL(`/view?${new URLSearchParams(picture)}`);
    this.picture.alt = "Which part of the picture each subject affected";
    this.show(lines.length > 0 || Boolean(picture));
    this.fit();
    node.graph.setDirtyCanvas?.(true, true); // elements move only when the canvas is redrawn
  }

  show(on) {
    const { widget } = this;
    widget.hidden = !on;
    widget.options.hidden = !on;
    widget.computeLayoutSize = () => ({ minHeight: this.height, maxHeight: this.height, minWidth: 0 });
  }

  /** The node is as much taller as its messages are, down to the next node; longer lists scroll, and show all lines as a tooltip. */
  fit() {
    const count = this.list.childElementCount + !this.picture.hidden;
    const most = roomBelow(this.node, this.list, this.added - this.picture.offsetHeight);
    this.list.style.maxHeight = Number.isFinite(most) ? `${most}px` : "none";
    const isCut = this.list.scrollHeight > this.list.clientHeight + 1;
    this.list.tabIndex = isCut ? 0 : -1;
    this.list.title = isCut ? Array.from(this.list.children, (line) => line.textContent).join("\n") : ""; // all of it, where the mouse rests on it
    const inside = this.list.offsetHeight + this.picture.offsetHeight;
    if (count && !inside) return; // not on the screen yet
    const height = count ? Math.ceil(inside) + 2 * (this.widget.margin ?? 10) : 0; // the canvas leaves a margin around elements
    if (height === this.height) return;
    const { node } = this;
    const more = height - this.height;
    this.height = height;
    if (!window.LiteGraph?.vueNodesMode) {
      this.added += more;
      node.setSize?.([node.size[0], node.size[1] + more]);
    }
    node.graph?.setDirtyCanvas?.(true, true);
  }

  /** The node has a size from elsewhere now, in which the messages have no room yet. */
  reset() {
    [this.added, this.height, this.seen] = [0, 0, ""];
  }

  end() {
    this.sizes.disconnect();
    shown.delete(this.node);
    atStart.delete(this.node);
  }
}

function attach(node) {
  if (!node.addDOMWidget) return;
  try {
    const panel = new Panel(node);
    shown.set(node, panel);
    chain(node, "onExecuted", (output) => {
      const [text] = output?.[UI] ?? [];
      if (!text) return;
      const messages = { ...NOTHING, ...JSON.parse(text) };
      notify(node, messages.warnings);
      keep(node, messages);
    });
    chain(node, "onConfigure", () => panel.reset());
    chain(node, "onSerialize", (saved) => {
      if (panel.added && saved.size) saved.size = [saved.size[0], saved.size[1] - panel.added]; // messages are not saved, so neither is their room
    });
    chain(node, "onRemoved", () => panel.end());
  } catch (error) {
    console.error("Troupe: no messages on this node.", error);
  }
}

/** The node of an execution id: "7", or "5:7" for node 7 in the subgraph of node 5. */
function nodeOf(id) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

const ours = (node) => shown.has(node);

api.addEventListener(EVENT, ({ detail }) => {
  const node = nodeOf(detail.node);
  if (!ours(node)) return;
  notify(node, detail.warning ? [detail.text] : []);
  const before = messagesOf(node);
  keep(node, { ...before, run: [...(detail.first ? [] : before.run), { warning: detail.warning, text: detail.text }] });
});

api.addEventListener(PICTURE, ({ detail }) => {
  const node = nodeOf(detail.node);
  if (ours(node)) keep(node, { ...messagesOf(node), picture: detail.picture });
});

api.addEventListener("execution_start", () => {
  for (const node of shown.keys()) if (node.graph) atStart.set(node, settingsUpstream(node, rootGraph()));
});

api.addEventListener("execution_error", ({ detail }) => {
  const node = nodeOf(detail.node_id);
  if (ours(node)) keep(node, { ...NOTHING, error: String(detail.exception_message ?? "").trim() });
});

const link = document.createElement("link");
link.rel = "stylesheet";
link.href = new URL("./messages.css", import.meta.url).href;
document.head.append(link);

setInterval(() => {
  for (const panel of shown.values()) panel.look();
}, LOOK);

app.registerExtension({
  name: "troupe.messages",
  nodeCreated(node) {
    if (String(node.constructor?.comfyClass ?? "").startsWith("Troupe")) attach(node);
  },
});
