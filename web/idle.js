// What keeps a node from having an effect, as far as its own widgets and wires show it before a run.
import { classOf, isWired, literal, origin, targets, widgetOf } from "./editor/graph.js";

const MUTED = 2;
const INACTIVE = [MUTED, 4];
const STRENGTHS = { // class -> its weight, and whose it is
  TroupeAddSubject: ["weight", "this subject's photos have"],
  TroupeApplyImageAttention: ["weight", "the references have"],
  TroupeQuickSubjects: ["weight", "the references have"],
  TroupeApplyGated: ["strength", "the references have"],
};
const APPLY = ["TroupeApplyImageAttention", "TroupeApplyGated"];

const NO_EFFECT = "the references have no effect";
const BYPASSED = {
  TroupeAddSubject: "this subject is left out", TroupeQuickSubjects: "its subjects are left out", TroupeApplyImageAttention: NO_EFFECT, TroupeApplyGated: NO_EFFECT,
  TroupeEncodeSubjects: "the subjects are not encoded, so the Apply node after it has no 'references'",
};

/** What it means that a node is bypassed or muted; [] where that is plain. */
export function inactiveLines(node) {
  const means = BYPASSED[classOf(node)];
  return means ? [{ kind: "earlier", text: `${node.mode === MUTED ? "Muted" : "Bypassed"}: ${means}` }] : [];
}

/** Whether a node that the subject goes to is muted. */
export const isBeforeMuted = (node) => (node.getOutputNodes?.(0) ?? []).some((next) => next.mode === MUTED);

export const isActive = (node) => !INACTIVE.includes(node.mode);

/** Sentences about a node that changes nothing as it is set. */
export function idleLines(node, root) {
  const [strength, whose] = STRENGTHS[classOf(node)] ?? [];
  if (!strength) return [];
  const lines = unconnectedPrompts(node, root);
  if (literal(node, strength, [], root) === 0) lines.push(`${strength} is 0, so ${whose} no effect: raise it, or bypass the node`);
  const [start, end] = ["start_percent", "end_percent"].map((name) => literal(node, name, [], root));
  if (typeof start === "number" && typeof end === "number" && start >= end) {
    lines.push(`start_percent (${short(start)}) is not below end_percent (${short(end)}), so ${whose} no effect`);
  }
  if (APPLY.includes(classOf(node)) && isWired(node, "model") && !isWired(node, "references")) lines.push("Connect 'references' of Encode Subject References");
  return lines;
}

const PROMPTS = { positive: "positive", negative: "negative", middle: "second positive" }; // inputs of the Apply nodes -> their labels

/** Prompts that the next node takes from this one and that this one does not have. */
function unconnectedPrompts(node, root) {
  if (![...APPLY, "TroupeQuickSubjects"].includes(classOf(node))) return [];
  const isTaken = (slot) => node.outputs?.[slot]?.type === "CONDITIONING" && targets(node, slot, [], root).length > 0;
  const lacking = Object.keys(PROMPTS).filter((name, i) => node.inputs?.some((input) => input.name === name) && !isWired(node, name) && isTaken(i + 1));
  return lacking.map((name) => `Connect a prompt to '${PROMPTS[name]}': the next node takes it from here, and does not run without it`);
}

const short = (number) => String(Number(number.toFixed(3)));

const MOST = 20; // nodes that hand a picture on

/** The class that a photo of Load Rehearsal Models shows, where its name is another one; null elsewhere. Nodes that take one picture, as previews, hand it on. */
export function otherPhoto(node, name, root, input = "image") {
  let from = origin(node, input, [], root);
  for (let left = MOST; left > 0 && from?.node && classOf(from.node) !== "TroupeRehearsal"; left--) {
    const pictures = (from.node.inputs ?? []).filter((input) => input.type === "IMAGE" && isWired(from.node, input.name));
    from = pictures.length === 1 ? origin(from.node, pictures[0].name, from.path, root) : null;
  }
  if (typeof name !== "string" || !name.trim() || !from?.node || classOf(from.node) !== "TroupeRehearsal") return null;
  const output = from.node.outputs?.[from.slot]?.name ?? "";
  const kind = widgetOf(from.node, output.replace("image", "subject"))?.value;
  return typeof kind === "string" && !name.toLowerCase().includes(kind) ? kind : null;
}
