// Pixels and shapes of masks. Grids are column-major as the runs are; an ImageData is row-major.

const GOLDEN = 0.618033988749895; // hues a golden ratio apart stay distinct
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
export const LAYERS = [[61, 122, 235], [240, 136, 46], [45, 184, 132]];

// RGB of a mask: its own, its crop layer's, or that of one of its scores between look.low and 1.
export function colourOf(mask, look) {
  if (look.colour === "layer") return LAYERS[Math.min(mask.layer, 2)];
  if (look.colour === "mask") return hsl((0.07 + mask.id * GOLDEN) % 1, 0.85, 0.5 + 0.1 * ((mask.id % 3) - 1));
  return mask[look.colour] === null ? [128, 128, 128] : ramp(mask[look.colour], look.low, 1);
}

// A picture of `labels` (0 = nothing, i + 1 = colours[i]): insides with this opacity, edges `t` wide and almost opaque.
export function paintLabels(labels, width, height, colours, opacity, t) {
  const image = new ImageData(width, height), out = new Uint32Array(image.data.buffer);
  if (colours.length === 0) return image;
  const inside = new Uint32Array(colours.length + 1), edge = new Uint32Array(colours.length + 1);
  colours.forEach((c, i) => {
    inside[i + 1] = pack(c, Math.round(255 * opacity));
    edge[i + 1] = pack(c.map((v) => Math.min(255, v * 1.25 + 20)), 245);
  });
  for (let x = 0; x < width; x++) {
    const base = x * height;
    const left = x >= t ? base - t * height : -1, right = x + t < width ? base + t * height : -1;
    for (let y = 0; y < height; y++) {
      const v = labels[base + y];
      if (v === 0) continue;
      const same =
        (y < t || labels[base + y - t] === v) && (y + t >= height || labels[base + y + t] === v) &&
        (left < 0 || labels[left + y] === v) && (right < 0 || labels[right + y] === v);
      out[y * width + x] = same ? inside[v] : edge[v];
    }
  }
  return image;
}

// A picture of one mask within its box (`part`: 1 or 0 a cell).
export function paintPart(part, width, height, colour, alpha, edgeAlpha, t) {
  const image = new ImageData(width, height), out = new Uint32Array(image.data.buffer);
  const inside = pack(colour, alpha), edge = pack(colour, edgeAlpha);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const i = x * height + y;
      if (!part[i]) continue;
      const inner =
        y >= t && y + t < height && x >= t && x + t < width &&
        part[i - t] && part[i + t] && part[i - t * height] && part[i + t * height];
      out[y * width + x] = inner || !edgeAlpha ? inside : edge;
    }
  }
  return image;
}

// RGBA in the byte order of ImageData on every machine that runs a browser.
function pack([r, g, b], a) {
  return ((a << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
}

export function ramp(value, low, high) {
  const place = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (STOPS.length - 1);
  const i = Math.min(STOPS.length - 2, Math.floor(place)), part = place - i;
  return STOPS[i].map((v, c) => v + (STOPS[i + 1][c] - v) * part);
}

function hsl(h, s, l) {
  const a = s * Math.min(l, 1 - l);
  return [0, 8, 4].map((n) => {
    const k = (n + h * 12) % 12;
    return 255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  });
}

export function rect([x, y, width, height]) {
  return { x, y, width, height };
}

// An SVG element of a class.
export function shape(name, kind, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  element.setAttribute("class", kind);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
