// The editor: a list of subjects, the canvas, the tools, and one line that says what is what. It holds what is chosen; the boxes are the node's.
import { copied, gridSnap, lacking, placed, write } from "./boxes.js";
import { paint } from "./draw.js";
import { pressed } from "./keys.js";
import { Pictures } from "./pictures.js";
import { Pointer } from "./pointer.js";
import { colourOf, inkOn } from "./palette.js";

export const GRID = 64; // pixels of the picture: a cell of the coarsest layers of SD1.5, two of SDXL's
const ICONS = {
  copy: "M5 5h8v8h-8zM3 10V3h7",
  lock: "M4 8h8v6H4zM5.5 8V5.5a2.5 2.5 0 0 1 5 0V8",
  bin: "M3 4.5h10M6.5 4V2.5h3V4M4.5 4.5l.7 9h5.6l.7-9",
  grid: "M2.5 2.5h11v11h-11zM6.2 2.5v11M9.8 2.5v11M2.5 6.2h11M2.5 9.8h11",
  keep: "M2.5 5V2.5H5M7 2.5h2M11 2.5h2.5V5M2.5 7v2M13.5 7v2M2.5 11v2.5H5M7 13.5h2M11 13.5h2.5V11M5 8l2.2 2.2L11 6",
  text: "M6 2.5H5Q3.8 2.5 3.8 3.8V6.5Q3.8 8 2.3 8Q3.8 8 3.8 9.5V12.2Q3.8 13.5 5 13.5H6M10 2.5H11Q12.2 2.5 12.2 3.8V6.5Q12.2 8 13.7 8Q12.2 8 12.2 9.5V12.2Q12.2 13.5 11 13.5H10",
};

const element = (tag, className, parent) => {
  const made = document.createElement(tag);
  made.className = className;
  parent?.append(made);
  return made;
};

export class BoxEditor {
  /**
   * host: {write(text, held): keeps the boxes, pictureOf(background): its URL, toggleText(), options: {grid, text}, remember({selected, focused})};
   * guarded(handler): the handler, made harmless where it throws.
   */
  constructor(host, guarded) {
    this.host = host;
    this.guarded = guarded;
    this.state = {
      text: "[]", boxes: [], fault: "", wired: false, connected: false, size: [512, 512], exact: true, names: [], photos: [], count: null, ghosts: [], background: null,
    };
    this.pictures = new Pictures(guarded(() => this.repaint()));
    this.selected = -1;
    this.draft = null; // the boxes while one is dragged
    this.draftIndex = -1;
    this.said = "";
    this.build();
    this.pointer = new Pointer(this.canvas, this, guarded);
    this.root.addEventListener("keydown", guarded((event) => {
      if (!pressed(this, event)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
    }));
    this.canvas.addEventListener("focus", guarded(() => this.host.remember({ focused: true })));
    this.canvas.addEventListener("blur", guarded(() => setTimeout(() => this.root.isConnected && this.host.remember({ focused: false })))); // not where an undo took it away
    this.sizes = new ResizeObserver(guarded(() => this.fit()));
    this.sizes.observe(this.stage);
  }

  build() {
    this.root = element("div", "troupe-editor");
    this.list = element("div", "troupe-subjects", this.root);
    this.stage = element("div", "troupe-stage", this.root);
    this.canvas = element("canvas", "troupe-canvas", this.stage);
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    const tools = element("div", "troupe-tools", this.root);
    this.tools = {
      copy: this.tool(tools, "copy", "Duplicate for the next subject (Ctrl+D)", () => this.duplicate()),
      lock: this.tool(tools, "lock", "Lock or unlock (L)", () => this.toggleLock()),
      bin: this.tool(tools, "bin", "Delete the box (Delete); the subject then has none", () => this.remove()),
      grid: this.tool(tools, "grid", `Snap to a grid of ${GRID} pixels; hold Alt to draw freely`, () => this.toggleGrid()),
      keep: this.tool(tools, "keep", "Keep the dashed boxes as boxes of your own", () => this.keepGhosts()),
      text: this.tool(tools, "text", "Show or hide the boxes as text", () => this.host.toggleText()),
    };
    this.hint = element("div", "troupe-hint", tools);
    this.hint.setAttribute("aria-live", "polite");
  }

  tool(parent, icon, title, action) {
    const button = element("button", "troupe-tool", parent);
    button.type = "button";
    button.title = title;
    button.dataset.tool = icon;
    button.setAttribute("aria-label", title);
    button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
    button.addEventListener("click", this.guarded(action));
    return button;
  }

  // ---- what is there ---------------------------------------------------------------------------------------------------------------------

  get boxes() { return this.state.boxes; }
  get size() { return this.state.size; }
  get grid() { return this.host.options.grid ? GRID : 0; }
  get editable() { return !this.state.fault && !this.state.wired; }
  get focused() { return document.activeElement === this.canvas; }

  /** The subject that is drawn next: the chosen one if it has no box, else the first without; -1 where all have one. */
  target() {
    const free = lacking(this.boxes, this.state.count);
    return free.includes(this.selected) ? this.selected : free[0] ?? -1;
  }

  nameOf(i) { return this.state.names[i] ?? ""; }

  snap(event) {
    return this.grid && !event.altKey ? gridSnap(...this.size, this.grid) : undefined;
  }

  /** Takes over what `host.read` found. */
  show(state) {
    const other = state.size.join() !== this.state.size.join();
    this.state = state;
    this.said = "";
    if (this.selected >= Math.max(state.boxes.length, state.count ?? 0)) this.selected = -1;
    if (other) this.fit();
    else this.repaint();
  }

  // ---- what is done ----------------------------------------------------------------------------------------------------------------------

  /** Keeps `boxes` and chooses subject `index`. held: a key held down goes on, the step for undo is taken when it is let go. */
  commit(boxes, index, held = false) {
    if (!this.editable) return;
    const box = boxes[index];
    const label = this.state.count > index ? this.nameOf(index) : box?.label; // a box that is touched takes its subject's name of today
    const named = box ? placed(boxes, index, { ...box, label: label ?? "" }) : boxes;
    this.select(index);
    this.host.write(write(named), held);
  }

  select(index) {
    this.selected = index;
    this.said = "";
    this.host.remember({ selected: index });
    this.repaint();
  }

  /** Chooses a subject by its number, as its button does; one without a box is drawn next. */
  choose(index) {
    if (index >= Math.max(this.boxes.length, this.state.count ?? 0)) return;
    this.select(index);
  }

  remove() {
    const box = this.boxes[this.selected];
    if (!box || !this.editable) return;
    if (box.locked) return this.say("This box is locked.");
    this.commit(placed(this.boxes, this.selected, null), -1);
  }

  duplicate() {
    const box = this.boxes[this.selected];
    if (!box || !this.editable) return;
    const target = lacking(this.boxes, this.state.count)[0] ?? -1;
    if (target < 0) return this.say("Every subject has a box.");
    this.commit(placed(this.boxes, target, copied(box, this.nameOf(target))), target);
  }

  toggleLock() {
    const box = this.boxes[this.selected];
    if (!box || !this.editable) return;
    const { locked, ...free } = box;
    this.commit(placed(this.boxes, this.selected, locked ? free : { ...free, locked: true }), this.selected);
  }

  toggleGrid() {
    this.host.options = { grid: !this.host.options.grid };
    this.repaint();
  }

  keepGhosts() {
    if (!this.editable) return;
    let boxes = this.boxes;
    this.state.ghosts.forEach((ghost, i) => {
      if (ghost && !boxes[i]) boxes = placed(boxes, i, { label: this.nameOf(i), ...ghost });
    });
    if (boxes !== this.boxes) this.commit(boxes, -1);
  }

  say(sentence) {
    this.said = sentence;
    this.repaint();
  }

  // ---- what is seen ----------------------------------------------------------------------------------------------------------------------

  /** Gives the canvas the picture's proportions, as large as the stage, and as many dots as the screen has for it at the graph's zoom. */
  fit() {
    const [width, height] = this.size;
    const scale = Math.min(this.stage.clientWidth / width, this.stage.clientHeight / height);
    if (!(scale > 0)) return;
    const [w, h] = [Math.max(Math.floor(width * scale), 1), Math.max(Math.floor(height * scale), 1)];
    this.dots = Math.min(this.zoom() * window.devicePixelRatio, 4);
    this.canvas.style.width = `${w}px`;
    this.canvas.style.height = `${h}px`;
    [this.canvas.width, this.canvas.height] = [Math.round(w * this.dots), Math.round(h * this.dots)];
    this.view = { width: w, height: h };
    this.repaint();
  }

  zoom() {
    const shown = this.stage.clientWidth ? this.stage.getBoundingClientRect().width / this.stage.clientWidth : 1;
    return Math.max(Math.round(shown * 4) / 4, 0.5);
  }

  /** True where the graph's zoom has changed so much that the canvas needs other dots. */
  get stale() { return this.view && this.dots !== Math.min(this.zoom() * window.devicePixelRatio, 4); }

  repaint() {
    this.listSubjects();
    this.describe();
    if (!this.view) return;
    const context = this.canvas.getContext("2d");
    context.setTransform(this.dots, 0, 0, this.dots, 0, 0);
    const { names, photos, background, count, ghosts, size } = this.state;
    paint(context, {
      ...this.view, names, count, ghosts, boxes: this.draft ?? this.boxes, selected: this.draft ? this.draftIndex : this.selected,
      photos: photos.map((address) => this.pictures.get(address)), image: this.pictures.get(background),
      grid: this.grid ? { width: size[0], height: size[1], pixels: this.grid } : null, ink: getComputedStyle(this.canvas).color,
    });
  }

  /** A button for each subject: its colour filled where it has a box. */
  listSubjects() {
    const { names, count } = this.state;
    const wanted = JSON.stringify([names, this.state.photos, count, this.selected, this.boxes.map(Boolean)]);
    if (wanted === this.listed) return;
    this.listed = wanted;
    while (this.list.children.length > names.length) this.list.lastChild.remove();
    names.forEach((name, i) => {
      const button = this.list.children[i] ?? this.subjectButton(i);
      const colour = count !== null && i >= count ? "#808080" : colourOf(i);
      const [mark, photo, word] = button.children;
      mark.textContent = i + 1;
      mark.style.borderColor = colour;
      mark.style.background = this.boxes[i] ? colour : "transparent";
      mark.style.color = this.boxes[i] ? inkOn(colour) : "inherit";
      const address = this.state.photos[i];
      photo.hidden = !address;
      if (address) photo.src = address;
      word.textContent = name;
      button.setAttribute("aria-pressed", String(i === this.selected));
      button.title = this.boxes[i] ? `Choose the box of subject ${i + 1}` : `Subject ${i + 1} has no box: choose it, then draw one`;
    });
  }

  subjectButton(i) {
    const button = element("button", "troupe-subject", this.list);
    button.type = "button";
    element("span", "troupe-mark", button);
    element("img", "troupe-photo", button).alt = "";
    element("span", "troupe-name", button);
    button.addEventListener("click", this.guarded(() => {
      this.select(this.selected === i ? -1 : i);
      this.canvas.focus({ preventScroll: true });
    }));
    return button;
  }

  describe() {
    const box = (this.draft ?? this.boxes)[this.draft ? this.draftIndex : this.selected];
    this.hint.textContent = this.said || this.sentence(box);
    this.hint.title = this.hint.textContent;
    this.canvas.setAttribute("aria-label", `Boxes of ${this.names()}. ${this.hint.textContent}`);
    const held = Boolean(box) && this.editable;
    this.tools.copy.disabled = !held || this.target() < 0;
    this.tools.lock.disabled = !held;
    this.tools.lock.setAttribute("aria-pressed", String(Boolean(box?.locked)));
    this.tools.bin.disabled = !held || Boolean(box.locked);
    this.tools.grid.setAttribute("aria-pressed", String(Boolean(this.grid)));
    this.tools.keep.disabled = !this.editable || !this.state.ghosts.some((ghost, i) => ghost && !this.boxes[i]);
    this.tools.text.setAttribute("aria-pressed", String(Boolean(this.host.options.text)));
  }

  names() {
    return this.state.names.map((name, i) => `${i + 1} ${name}`).join(", ") || "no subjects";
  }

  sentence(box) {
    const { fault, wired, connected, count, size, exact, layout } = this.state;
    if (fault) return `${fault} Show the text (the braces) and mend it.`;
    if (wired) return "The boxes come from the node wired into 'boxes'.";
    if (box) {
      const [w, h] = [Math.round(box.w * size[0]), Math.round(box.h * size[1])];
      const stray = count !== null && this.selected >= count && !this.draft ? ": no such subject" : "";
      return `at ${Math.round(box.x * size[0])}, ${Math.round(box.y * size[1])}: ${w} × ${h}${stray}`;
    }
    const target = this.target();
    if (!connected && !this.boxes.length) return "Wire the last Add Subject into 'cast'.";
    if (target < 0) return `Click a box to change it.${layout && layout !== "none" ? " 'layout' adds no boxes: every subject has one." : ""}`;
    return `Drag to draw ${target + 1} ${this.nameOf(target)}`.trimEnd() + (exact ? "" : " (proportions after a run)");
  }
}
