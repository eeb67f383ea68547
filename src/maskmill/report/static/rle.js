// COCO's compressed run lengths: column-major runs, zeros first (cocoapi, maskApi.c, rleFrString).

const known = new Map();

// The runs of a compressed string, as a Uint32Array; decoded once for each string until `forget`.
export function runs(counts) {
  let found = known.get(counts);
  if (!found) known.set(counts, (found = decode(counts)));
  return found;
}

export function forget() {
  known.clear();
}

function decode(counts) {
  const out = new Uint32Array(counts.length);
  let n = 0, value = 0, shift = 0;
  for (let i = 0; i < counts.length; i++) {
    const code = counts.charCodeAt(i) - 48;
    value |= (code & 31) << shift;
    shift += 5;
    if (code & 32) continue;
    if (code & 16 && shift < 32) value |= -1 << shift;
    out[n] = n > 2 ? value + out[n - 2] : value;
    n++;
    value = shift = 0;
  }
  return out.subarray(0, n);
}

// Whether the pixel with this column-major index is inside.
export function covers(list, index) {
  let at = 0;
  for (let i = 0; i < list.length; i++) {
    at += list[i];
    if (index < at) return i % 2 === 1;
  }
  return false;
}

// Writes `value` wherever the mask is, into a column-major grid that keeps every step-th row and column.
export function fill(list, value, grid, height, gridHeight, step) {
  let at = 0;
  for (let i = 0; i + 1 < list.length; i += 2) {
    const start = at + list[i], end = start + list[i + 1];
    at = end;
    if (step === 1) {
      grid.fill(value, start, end);
      continue;
    }
    for (let s = start; s < end; ) {
      const column = Math.floor(s / height), top = s - column * height;
      const stop = Math.min(end, (column + 1) * height);
      if (column % step === 0) {
        const base = (column / step) * gridHeight;
        grid.fill(value, base + Math.ceil(top / step), base + Math.ceil((top + stop - s) / step));
      }
      s = stop;
    }
  }
}

// The part of a mask inside a box of that grid: 1 in its cells.
export function fillBox(list, part, height, step, x0, y0, w, h) {
  let at = 0;
  for (let i = 0; i + 1 < list.length; i += 2) {
    const end = at + list[i] + list[i + 1];
    for (let s = at + list[i]; s < end; ) {
      const column = Math.floor(s / height), top = s - column * height;
      const stop = Math.min(end, (column + 1) * height);
      const x = column / step - x0;
      if (column % step === 0 && x >= 0 && x < w) {
        const from = Math.max(0, Math.ceil(top / step) - y0), to = Math.min(h, Math.ceil((top + stop - s) / step) - y0);
        if (to > from) part.fill(1, x * h + from, x * h + to);
      }
      s = stop;
    }
    at = end;
  }
}
