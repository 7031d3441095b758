// One colour for each subject, the same as in every picture that Troupe makes (model_patches/placement/palette.py).

// Okabe and Ito's colours, which colour-blind people can tell apart, with a light grey in place of black.
export const PALETTE = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#dddddd"];

/** Colour of the subject at `index`, counted from 0; they repeat after eight. */
export const colourOf = (index) => PALETTE[index % PALETTE.length];

/** Black or white, whichever is read better on '#rrggbb' (WCAG's contrast). */
export function inkOn(colour) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const [red, green, blue] = parts.map((p) => (p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}
