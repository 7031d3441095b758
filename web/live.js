// What can be said about a node before it runs: whether its names are in the prompt, what its cast lacks, and why the host refused to run it.
import { app } from "../../scripts/app.js";
import { castOf, classOf, isWired, literal, targets, widgetOf } from "./editor/graph.js";
import { idleLines, inactiveLines, isActive, isBeforeMuted, otherPhoto } from "./idle.js";
import { namesOf, plainWords, SUBJECTS } from "./names.js";
import { settingsUpstream } from "./run_settings.js";

const missing = (text) => ({ kind: "missing", text });
const alike = (name) => missing(`Another subject is called '${name.trim()}' too: give each a name of its own, or a box with Place Subjects`);
const nameless = (photo) => missing(`The subject${photo} has no name yet: type its word from your prompt`);

/** The lines of a node, {kind: "tick" | "missing" | "error", text}. nodeOf: the node of an execution id. */
export function liveLines(node, root, nodeOf) {
  const refused = refusals(node, root, nodeOf);
  if (!isActive(node)) return [...refused, ...inactiveLines(node)];
  const wires = refused.some(({ kind, isEarlier }) => kind === "error" && !isEarlier) ? [] : inCast(node, root); // the host has said it
  return [...refused, ...wires, ...idleLines(node, root).map(missing), ...namesOf(node, root).map((one) => ofName(one, node, root))];
}

/** kind: what the photo shows, null where it fits the name; where: of Quick Subjects' photos. */
function wrongPhoto(kind, name, where = "") {
  return kind ? [missing(`The photo${where} shows a ${kind}, the name is '${name.trim()}': connect the right photo, or change the name`)] : [];
}

const NUMBERS = ["No", "One", "Two", "Three", "Four"];
const inWords = (number) => NUMBERS[number] ?? String(number);

function ofName({ name, count, isPromptEmpty }, node, root) {
  if (isPromptEmpty) return missing(`Your prompt is empty: write one with '${name}' in it`);
  if (!count) return missing(`'${name}' is not in your prompt: add it, or change the name`);
  const alike = subjectsOf(node, root).filter((other) => isSame(other, name)).length;
  if (alike > count) {
    const often = count === 1 ? "once" : `${inWords(count).toLowerCase()} times`;
    return missing(`${inWords(alike)} subjects are called '${name}', but it is only ${often} in your prompt: write 'a ${name} and another ${name}'`);
  }
  return { kind: "tick", text: `'${name}' is in your prompt` };
}

/** The names of all subjects of a node's cast, its own among them. */
function subjectsOf(node, root) {
  if (classOf(node) === "TroupeQuickSubjects") return quickNames(node, root).map(({ name }) => name);
  return [literal(node, "name", [], root), ...othersOf(node, root)];
}

/** The names of Quick Subjects whose photos are connected: {n, name}. */
function quickNames(node, root) {
  return Array.from({ length: SUBJECTS }, (_, i) => i + 1).filter((n) => isWired(node, `image_${n}`)).map((n) => ({ n, name: literal(node, `name_${n}`, [], root) }));
}

/** The names of the other subjects that an Add Subject is chained with. */
function othersOf(node, root) {
  const behind = chainAfter(node, root).filter((next) => next.node !== node && classOf(next.node) === "TroupeAddSubject");
  return [...(castOf(node, root) ?? []).map((one) => one.name), ...behind.map((next) => literal(next.node, "name", next.path, root))];
}

/** What is missing in the cast for a subject of Add Subject or Quick Subjects to come out as meant. */
function inCast(node, root) {
  if (classOf(node) === "TroupeAddSubject") return inChain(node, root);
  if (classOf(node) !== "TroupeQuickSubjects") return [];
  const given = quickNames(node, root);
  const [numbers, names] = [given.map(({ n }) => n), given.map(({ name }) => name)];
  if (!numbers.length) return [missing("Connect a photo to 'image_1', and type its word from your prompt in 'name_1'")];
  const namedWithout = (n) => !numbers.includes(n) && /\S/.test(widgetOf(node, `name_${n}`)?.value ?? "");
  const empty = Array.from({ length: SUBJECTS }, (_, i) => i + 1).filter(namedWithout);
  return [
    ...empty.map((n) => missing(`'${widgetOf(node, `name_${n}`).value.trim()}' has no photo: connect one to 'image_${n}', or clear 'name_${n}'`)),
    ...names.flatMap((name, i) => (isEmpty(name) ? [nameless(` in image_${numbers[i]}`)] : [])),
    ...given.flatMap(({ n, name }) => wrongPhoto(otherPhoto(node, name, root, `image_${n}`), name, ` in image_${n}`)),
    ...names
      .filter((name, i) => names.slice(0, i).some((before) => isSame(before, name)))
      .map((name) => missing(`Another subject is called '${name.trim()}' too: give each a name of its own`)),
  ];
}

function inChain(node, root) {
  const name = literal(node, "name", [], root);
  const after = chainAfter(node, root);
  if (!isWired(node, "image")) {
    const more = after.length ? "" : ", and 'cast' to the next Add Subject or to Encode Subject References";
    return [missing(`Connect this subject's photo to 'image'${more}`)];
  }
  const lines = wrongPhoto(otherPhoto(node, name, root), name);
  if (after.length === 0) {
    const remedy = isBeforeMuted(node) ? "the node after it is muted" : "connect 'cast' to the next Add Subject or to Encode Subject References";
    lines.push(missing(`This subject is not in the picture: ${remedy}`));
  }
  if (isEmpty(name) && after.some(({ node: next }) => isWired(next, "clip"))) lines.push(nameless(""));
  const isPlaced = isWired(node, "region") || after.some(({ node: next }) => classOf(next) === "TroupePlaceSubjects");
  if (!isPlaced && othersOf(node, root).some((other) => isSame(other, name))) lines.push(alike(name));
  return lines;
}

/** The nodes that get a subject over its cast, each use once: {node, path}, path being the subgraph nodes around it. */
function chainAfter(node, root) {
  const found = new Map();
  const waiting = [{ node, path: [] }];
  while (waiting.length) {
    const at = waiting.shift();
    for (const slot of at.node.outputs?.keys() ?? []) {
      if (at.node.outputs[slot].type !== "TROUPE_CAST") continue;
      for (const next of targets(at.node, slot, at.path, root)) {
        const use = [...next.path, next.node].map(({ id }) => id).join(":"); // a node in a subgraph is there once for each use
        if (found.has(use)) continue;
        found.set(use, next);
        waiting.push(next);
      }
    }
  }
  return [...found.values()];
}

const isEmpty = (name) => typeof name === "string" && !name.trim();
const isSame = (a, b) => typeof a === "string" && typeof b === "string" && plainWords(a) !== "" && plainWords(a) === plainWords(b);

const refused = new WeakMap(); // settingsUpstream of each node when the host refused, by the host's answer

/** Why the host refused to run the graph, as far as this node is the reason. Where the graph has changed since, the lines say so. */
function refusals(node, root, nodeOf) {
  const answer = app.lastNodeErrors ?? {};
  const found = Object.entries(answer).filter(([id]) => nodeOf(id) === node).flatMap(([, each]) => each.errors ?? []);
  if (!found.length) return [];
  if (!refused.has(answer)) refused.set(answer, new Map());
  const then = refused.get(answer);
  const now = settingsUpstream(node, root);
  if (!then.has(node)) then.set(node, now);
  const isEarlier = then.get(node) !== now;
  const lines = [...new Set(found.flatMap((each) => refusal(each).split("\n")))].map((text) => ({ kind: "error", text, isEarlier }));
  return isEarlier ? [{ kind: "earlier", text: "From your last try, before you changed the graph:" }, ...lines] : lines;
}

function refusal({ type, message, details, extra_info: extra }) {
  const input = extra?.input_name ?? "";
  if (type === "required_input_missing") return `Connect '${input || details}'`;
  const text = String(details ?? "");
  if (type === "custom_validation_failed") return input && text.startsWith(`${input} - `) ? text.slice(input.length + 3) : text;
  return [message, text].filter(Boolean).join(": ");
}
