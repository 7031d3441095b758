// Lets artists find the nodes by the words they type, where the host is too old to send such words itself (search_aliases, see nodes/types.py).
// The search of older front ends reads only names, and hardly more than the first 30 letters of a name: there a few words are added to it.
// Newer ones show the name of the locale instead, and read the aliases: they get the same words as an alias.
import { app } from "../../scripts/app.js";

const NAMES = {
  TroupeQuickSubjects: "Subjects, quick (multi, two characters)", // begins with the word, so that no other node comes first for it
  TroupeLoadAdapter: "Load Subject Adapter (ipadapter)",
  TroupeAddSubject: "Add Subject (person, photo, mask)",
  TroupeEncodeSubjects: "Encode Subject References (consistent)",
  TroupeApplyImageAttention: "Apply Image Attention (ip adapter)",
  TroupePlaceSubjects: "Place Subjects (region, box)",
  TroupeApplyGated: "Apply Gated Adapter (gligen, box)",
};

app.registerExtension({
  name: "troupe.search",
  beforeRegisterVueAppNodeDefs(defs) {
    for (const def of defs) {
      if (!NAMES[def.name] || def.search_aliases?.length) continue;
      def.display_name = NAMES[def.name];
      def.search_aliases = [NAMES[def.name]];
    }
  },
});
