// Adds the box editor to Place Subjects. The node's text 'boxes' stays what is saved and sent; without this script it is what one writes into.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { chain } from "./chain.js";
import { BoxEditor } from "./editor/editor.js";
import { widgetOf } from "./editor/graph.js";
import { keepRun, memoryOf, read, snapshot, writeText } from "./editor/host.js";

const NODE = "TroupePlaceSubjects";
const OPTIONS = "troupe_editor"; // of the node's properties: {grid, text}
const LOOK = 200; // milliseconds between two looks at the graph
const SMALLEST = [360, 560]; // of a new node

function style() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./editor/editor.css", import.meta.url).href;
  document.head.append(link);
}

/** One editor on one node; whatever throws in it ends it and leaves the text. */
class Binding {
  constructor(node) {
    this.node = node;
    this.seen = "";
    const guarded = (handler) => (...given) => {
      try {
        return this.stopped ? undefined : handler(...given);
      } catch (error) {
        this.stop(error);
      }
    };
    const binding = this;
    this.editor = new BoxEditor({
      get options() { return node.properties?.[OPTIONS] ?? {}; },
      set options(changed) { node.setProperty(OPTIONS, { ...this.options, ...changed }); },
      write: (text, held) => this.write(text, held),
      remember: (what) => node.graph && Object.assign(memoryOf(node), what),
      toggleText() {
        this.options = { text: !this.options.text };
        binding.showText(this.options.text);
        binding.look();
      },
    }, guarded);
    const { root } = this.editor;
    this.widget = node.addDOMWidget("editor", "troupe_boxes", root, {
      getValue: () => "", setValue: () => {}, getMinHeight: () => 260, hideOnZoom: false, serialize: false,
    });
    this.widget.serialize = false;
    root.addEventListener("keyup", guarded(() => this.held && this.settle()));
    root.addEventListener("wheel", guarded((event) => this.passOn(event, "processMouseWheel")), { passive: false });
    for (const [type, name] of Object.entries({ pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" })) {
      root.addEventListener(type, guarded((event) => (event.button === 1 || event.buttons & 4) && this.passOn(event, name)));
    }
    chain(node, "onConfigure", guarded(() => this.restore()));
    chain(node, "onExecuted", guarded((output) => keepRun(node, output)));
    chain(node, "onRemoved", () => this.end());
    this.look = guarded(this.look.bind(this));
    this.timer = setInterval(this.look, LOOK);
    this.showText(false);
    this.showPreview(false);
    node.setSize?.([Math.max(node.size[0], SMALLEST[0]), Math.max(node.size[1], SMALLEST[1])]);
    this.look();
  }

  /** Panning and zooming the graph goes on over the editor. Nodes 2.0 sees to that itself. */
  passOn(event, name) {
    if (window.LiteGraph?.vueNodesMode) return;
    event.preventDefault();
    app.canvas[name](event);
  }

  look() {
    const { node, editor } = this;
    if (!node.graph || editor.pointer?.drag) return;
    const state = read(node, app);
    const address = (file) => file && api.apiURL(`/view?${new URLSearchParams(file)}`);
    state.background = address(state.background);
    state.photos = state.photos.map(address);
    const seen = JSON.stringify(state);
    if (seen !== this.seen) {
      this.seen = seen;
      editor.show(state);
    }
    if (editor.stale) editor.fit();
    this.mount();
  }

  /** After an undo, Nodes 2.0 goes on showing the element of the node that is gone: this one takes its place. */
  mount() {
    const memory = memoryOf(this.node);
    this.memory = memory;
    const { root } = this.editor;
    if (memory.root !== root && memory.root?.isConnected && !root.isConnected) memory.root.replaceWith(root);
    memory.root = root;
  }

  /** After loading or undo: what was chosen is chosen again, and the keyboard is where it was. */
  restore() {
    const { editor, node } = this;
    this.showText(Boolean(node.properties?.[OPTIONS]?.text));
    this.look();
    const { selected, focused, gone } = memoryOf(node);
    if (selected < Math.max(editor.boxes.length, editor.state.count ?? 0)) editor.select(selected);
    if (focused && Date.now() - gone < 2000) setTimeout(() => editor.canvas.focus({ preventScroll: true }));
  }

  /** held: a key is held down; all that it does is one step for undo. */
  write(text, held) {
    writeText(this.node, text);
    this.look();
    this.held = held;
    if (!held) this.settle();
  }

  settle() {
    this.held = false;
    snapshot(app);
  }

  showText(shown) {
    const text = widgetOf(this.node, "boxes");
    text.hidden = !shown;
    text.options.hidden = !shown;
    if (shown) delete text.computeLayoutSize;
    else text.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 }); // front ends of 2025 leave room for hidden text
    this.node.graph?.setDirtyCanvas?.(true, true);
  }

  /** The host's picture of the last run below the node; the editor shows the same. */
  showPreview(shown) {
    this.node.hideOutputImages = !shown;
    if (shown) delete this.node.onDrawBackground;
    else this.node.onDrawBackground = () => {};
  }

  end() {
    if (this.memory) this.memory.gone = Date.now();
    clearInterval(this.timer);
    this.editor.sizes.disconnect();
  }

  /** The editor is broken: say so, and leave the text to write into. */
  stop(error) {
    console.error("Troupe: the box editor stopped.", error);
    this.stopped = true;
    this.end();
    this.showText(true);
    this.showPreview(true);
    this.editor.root.className = "troupe-stopped";
    this.editor.root.textContent = `The box editor stopped (${error?.message ?? error}). The boxes can be written as text, above.`;
  }
}

function attach(node) {
  const text = widgetOf(node, "boxes");
  if (!text || !node.addDOMWidget) return;
  try {
    node.troupeBoxes = new Binding(node);
  } catch (error) {
    console.error("Troupe: no box editor on this node.", error);
    [text.hidden, text.options.hidden] = [false, false];
    delete text.computeLayoutSize;
    delete node.onDrawBackground;
    const editor = widgetOf(node, "editor");
    if (editor) node.removeWidget?.(editor);
  }
}

style();
app.registerExtension({
  name: "troupe.place_subjects",
  nodeCreated(node) {
    if (node.constructor?.comfyClass === NODE) attach(node);
  },
});
