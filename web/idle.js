// What keeps a node from having an effect, as far as its own widgets and wires show it before a run.
import { classOf, isWired, literal, origin, widgetOf } from "./editor/graph.js";

const BYPASSED_OR_MUTED = [2, 4];
const STRENGTHS = { // class -> its weight, and whose it is
  TroupeAddSubject: ["weight", "this subject's photos have"],
  TroupeApplyImageAttention: ["weight", "the references have"],
  TroupeQuickSubjects: ["weight", "the references have"],
  TroupeApplyGated: ["strength", "the references have"],
};
const APPLY = ["TroupeApplyImageAttention", "TroupeApplyGated"];

export const isActive = (node) => !BYPASSED_OR_MUTED.includes(node.mode);

/** Sentences about a node that changes nothing as it is set. */
export function idleLines(node, root) {
  const [strength, whose] = STRENGTHS[classOf(node)] ?? [];
  if (!strength) return [];
  const lines = [];
  if (literal(node, strength, [], root) === 0) lines.push(`${strength} is 0, so ${whose} no effect`);
  const [start, end] = ["start_percent", "end_percent"].map((name) => literal(node, name, [], root));
  if (typeof start === "number" && typeof end === "number" && start >= end) {
    lines.push(`start_percent (${short(start)}) is not below end_percent (${short(end)}), so ${whose} no effect`);
  }
  if (APPLY.includes(classOf(node)) && isWired(node, "model") && !isWired(node, "references")) lines.push("Connect 'references' of Encode Subject References");
  return lines;
}

const short = (number) => String(Number(number.toFixed(3)));

/** The class that a photo of Load Rehearsal Models shows, where its name is another one; null elsewhere. */
export function otherPhoto(node, name, root) {
  const from = origin(node, "image", [], root);
  if (typeof name !== "string" || !from?.node || classOf(from.node) !== "TroupeRehearsal") return null;
  const output = from.node.outputs?.[from.slot]?.name ?? "";
  const kind = widgetOf(from.node, output.replace("image", "subject"))?.value;
  return typeof kind === "string" && !name.toLowerCase().includes(kind) ? kind : null;
}
