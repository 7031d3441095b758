// Whether a subject's name is in the prompt, as model_patches/prompt/names.py and graph_text.py find out when the graph runs.
import { classOf, isWired, literal, origin, targets, widgetOf } from "./editor/graph.js";

const TEXT_INPUTS = ["text", "text_g", "text_l", "prompt", "positive_prompt", "string", "value", "string_a", "string_b"];
const MOST = 200; // nodes looked at
export const SUBJECTS = 4; // of Quick Subjects
const UNKNOWN = new Error("a text that only a run can tell");
const MADE = {
  StringConcatenate: (given) => [given.string_a, given.string_b].join(given.delimiter ?? ""),
  StringReplace: (given) => given.string.replaceAll(given.find, given.replace),
  StringTrim: (given) => given.string.trim(),
};
const PROMPTS = {
  TroupeApplyImageAttention: ["positive", "middle"], TroupeApplyGated: ["positive", "middle"], TroupeQuickSubjects: ["positive"],
  TroupeEncodePrompt: ["text"], TroupeEncodeSubjects: ["prompt"],
};

/** Lower case words with single spaces, as `plain_words`. */
export function plainWords(text) {
  const kept = text.normalize("NFC").replaceAll("\\(", "\0").replaceAll("\\)", "\x01").replace(/:\s*[-+]?\d*\.?\d+\s*(?=\)|$)/g, " ").replace(/[()]/g, " ");
  return kept.replaceAll("\0", "(").replaceAll("\x01", ")").replaceAll("_", " ").toLowerCase().split(/\s+/).filter(Boolean).join(" ");
}

const SPACELESS = /[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]/;
const kind = (letter) => (/\p{Nd}/u.test(letter) ? "\\p{Nd}" : "[\\p{L}\\p{Nl}\\p{No}]");
const bounded = (letter) => /[\p{L}\p{N}_]/u.test(letter) && !SPACELESS.test(letter);

/** Whether the prompt has the name as whole words, as `stands_in`. */
export const isIn = (name, prompt) => timesIn(name, prompt) > 0;

function timesIn(name, prompt) {
  const words = plainWords(name);
  if (!words) return 0;
  const letters = [...words];
  const [first, last] = [letters[0], letters.at(-1)];
  const before = bounded(first) ? `(?<!${kind(first)})` : "";
  const after = bounded(last) ? `(?:e?s)?(?!${kind(last)})` : "";
  return plainWords(prompt).match(new RegExp(before + words.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&") + after, "gu"))?.length ?? 0;
}

/** The names of a node and how often each is in its prompt: [{name, count, isPromptEmpty}]; [] where there is no name, or no prompt can be known. */
export function namesOf(node, root) {
  const names = namedBy(node, root).filter((name) => typeof name === "string" && name.trim());
  if (!names.length) return [];
  const found = promptsOf(node, root);
  const texts = found.filter((text) => text.trim());
  if (found.length && !texts.length) return names.map((name) => ({ name, count: 0, isPromptEmpty: true }));
  return texts.length ? names.map((name) => ({ name, count: Math.max(...texts.map((text) => timesIn(name, text))) })) : [];
}

function namedBy(node, root) {
  if (classOf(node) === "TroupeAddSubject") return [literal(node, "name", [], root)];
  if (classOf(node) !== "TroupeQuickSubjects") return [];
  return Array.from({ length: SUBJECTS }, (_, i) => i + 1).filter((n) => isWired(node, `image_${n}`)).map((n) => literal(node, `name_${n}`, [], root));
}

/** The nodes from one on along the wires of some types, each once: {node, path}. */
function* along(start, types, root) {
  const waiting = [start];
  const seen = new Set();
  while (waiting.length && seen.size < MOST) {
    const at = waiting.shift();
    if (seen.has(at.node)) continue;
    seen.add(at.node);
    yield at;
    for (const slot of at.node.outputs?.keys() ?? []) {
      if (types.includes(at.node.outputs[slot].type)) waiting.push(...targets(at.node, slot, at.path, root));
    }
  }
}

/** The texts of the prompts that a node's subjects act on: of the Apply nodes after it, or of the samplers after these. */
function promptsOf(node, root) {
  const texts = [];
  try {
    for (const at of along({ node, path: [] }, ["TROUPE_CAST", "TROUPE_REFERENCES"], root)) {
      const inputs = PROMPTS[classOf(at.node)];
      const wired = inputs?.filter((name) => isWired(at.node, name) || (name === "text" && widgetOf(at.node, name))) ?? [];
      if (wired.length) texts.push(...textsInto(at, wired, root));
      else if (inputs?.includes("positive")) texts.push(...textsOfSamplers(at, root));
    }
  } catch (error) {
    if (error !== UNKNOWN) throw error;
    return [];
  }
  return texts;
}

/** The positive prompts of the samplers that take the MODEL of an Apply node. */
function textsOfSamplers(apply, root) {
  const texts = [];
  for (const at of along(apply, ["MODEL", "GUIDER"], root)) {
    const name = at.node === apply.node ? null : ["positive", "conditioning"].find((name) => isWired(at.node, name));
    if (name) texts.push(...textsInto(at, [name], root));
  }
  return texts;
}

/** Texts of the encoders upstream of a node's inputs, as `literal_texts`; throws UNKNOWN. */
function textsInto({ node, path }, inputs, root) {
  const waiting = [];
  const texts = [];
  const seen = new Set();
  const look = (at, names) => {
    for (const name of names) {
      if (TEXT_INPUTS.includes(name)) texts.push(textOf(at.node, name, at.path, root, MOST));
      else if (isWired(at.node, name)) waiting.push(origin(at.node, name, at.path, root));
    }
  };
  look({ node, path }, inputs);
  while (waiting.length && seen.size < MOST) {
    const at = waiting.shift();
    if (!at) continue;
    if ("value" in at) throw UNKNOWN;
    if (seen.has(at.node)) continue;
    seen.add(at.node);
    look(at, namesIn(at.node));
  }
  return texts;
}

/** Names of a node's inputs and of its widgets that hold text. */
function namesIn(node) {
  const widgets = (node.widgets ?? []).filter((widget) => typeof widget.value === "string" && TEXT_INPUTS.includes(widget.name)).map((widget) => widget.name);
  return [...new Set([...(node.inputs ?? []).map((input) => input.name).filter((name) => isWired(node, name)), ...widgets])];
}

function textOf(node, name, path, root, left) {
  if (left === 0) throw UNKNOWN;
  if (!isWired(node, name)) {
    const value = widgetOf(node, name)?.value;
    if (typeof value !== "string") throw UNKNOWN;
    return value;
  }
  const from = origin(node, name, path, root);
  if (from && "value" in from && typeof from.value === "string") return from.value;
  if (!from?.node) throw UNKNOWN;
  const make = MADE[classOf(from.node)];
  const names = namesOfTexts(from.node);
  const given = Object.fromEntries(names.map((each) => [each, textOf(from.node, each, from.path, root, left - 1)]));
  if (make) return make(given);
  if (names.length !== 1 || !TEXT_INPUTS.includes(names[0])) throw UNKNOWN; // not a node that only holds or passes on one text
  return given[names[0]];
}

function namesOfTexts(node) {
  const wired = (node.inputs ?? []).map((input) => input.name).filter((name) => isWired(node, name));
  const widgets = (node.widgets ?? []).filter((widget) => typeof widget.value === "string" && widget.name !== "mode").map((widget) => widget.name);
  return [...new Set([...wired, ...widgets])];
}
