// The right panel: what is known of a mask, the list of masks, and the filter's controls.

export const $ = (id) => document.getElementById(id);

// An element with properties, attributes (names with a dash, or `role`) and children.
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "list") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const number = (value, digits = 3) => (value === null ? "\u2013" : value.toFixed(digits));
export const whole = (value) => value.toLocaleString("en-US");
const round = (value) => String(Math.round(value * 100) / 100);
const PARTS = ["whole", "part", "subpart"];

// All that is stored about a mask.
export function showDetail(mask, image, choose) {
  const root = $("detail");
  root.hidden = !mask;
  root.scrollTop = $("mask").scrollTop = 0;
  if (!mask) return root.replaceChildren();
  const automatic = mask.source === "auto";
  const rows = [
    ["predicted IoU", number(mask.predicted_iou), mask.predicted_iou],
    ["stability", number(mask.stability_score), mask.stability_score],
    ["area", `${whole(mask.area)} px, ${((100 * mask.area) / (image.width * image.height)).toFixed(2)}%`],
    ["box XYWH", mask.box.map(round).join(", ")],
    ["prompt point", mask.point ? mask.point.map(round).join(", ") : "\u2013"],
    ["crop XYWH", mask.crop ? mask.crop.join(", ") : "\u2013"],
    ...(automatic ? [["prompt, token", `${Math.floor(mask.id / 3)}, ${mask.id % 3} (${PARTS[mask.id % 3]})`]] : []),
    ["source", [mask.source, mask.model].filter(Boolean).join(", ")],
    ...meta(mask.meta),
  ];
  const list = make("dl", {}, ...rows.map(([name, value, share]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, share == null ? null : bar(share)))));
  const text = JSON.stringify({ size: [image.height, image.width], counts: mask.counts });
  const copy = make("button", { onclick: () => copyText(text, copy) }, "Copy RLE");
  root.replaceChildren(
    make("div", { className: "head" },
      make("h2", {}, `Mask ${mask.id}`),
      make("button", { "aria-label": "No mask chosen", title: "No mask chosen (Esc)", onclick: () => choose(null) }, "\u00d7")),
    list,
    make("label", { className: "rle" }, "RLE", make("textarea", { readOnly: true, rows: 3, value: text, spellcheck: false })),
    copy,
  );
}

function meta(text) {
  if (!text) return [];
  let tree;
  try { tree = JSON.parse(text); } catch { return [["meta", text]]; }
  if (tree === null || typeof tree !== "object") return [["meta", text]];
  return Object.entries(tree).map(([k, v]) => [k, typeof v === "object" ? JSON.stringify(v) : String(v)]);
}

function bar(share) {
  const inside = make("i");
  inside.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("span", { className: "bar" }, inside);
}

export async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy by hand";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

// One row for each mask, the largest first. Rows are made a few hundred at a time.
export function showRows(stage, choose) {
  const list = $("rows");
  $("count").textContent = whole(stage.masks.length);
  const row = (mask) => {
    const swatch = make("i");
    swatch.style.background = `rgb(${stage.colour(mask).map(Math.round).join(" ")})`;
    const button = make("button", { onclick: () => choose(mask) }, swatch,
      make("b", {}, String(mask.id)), make("span", {}, number(mask.predicted_iou, 2)),
      make("span", {}, number(mask.stability_score, 2)), make("span", {}, whole(mask.area)));
    button.onmouseenter = () => stage.hover(mask);
    button.onmouseleave = () => stage.hover(null);
    button.dataset.id = mask.id;
    return make("li", {}, button);
  };
  const head = make("li", { className: "names", "aria-hidden": "true" },
    make("i"), make("b", {}, "id"), make("span", {}, "IoU"), make("span", {}, "stab."), make("span", {}, "px"));
  list.replaceChildren(head, ...stage.masks.map(row));
}

export function markRow(mask) {
  $("rows").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const button = mask && $("rows").querySelector(`[data-id="${mask.id}"]`);
  if (!button) return;
  button.setAttribute("aria-current", "true");
  button.scrollIntoView({ block: "nearest" });
}

// Filter controls, one for each setting; `changed(name, value)` hears each move.
export class Controls {
  constructor(specs, changed) {
    this.inputs = new Map();
    const shown = [], more = [];
    for (const spec of specs) (spec.more ? more : shown).push(this.control(spec, changed));
    $("controls").replaceChildren(...shown);
    if (more.length) $("controls").append(make("details", {}, make("summary", {}, "More rules"), ...more));
  }

  control(spec, changed) {
    const { name, kind } = spec, id = `set-${name}`;
    const label = make("label", { htmlFor: id }, name);
    const heard = (value) => changed(name, value);
    let body, set;
    if (kind === "range") {
      const range = make("input", { type: "range", id, min: spec.min, max: spec.max, step: spec.step });
      const exact = make("input", { type: "number", min: spec.min, max: spec.max, step: "any", "aria-label": `${name}, exact` });
      range.oninput = () => { exact.value = range.value; heard(Number(range.value)); };
      exact.onchange = () => { if (exact.value !== "") { range.value = exact.value; heard(Number(exact.value)); } };
      set = (value) => { range.value = value; exact.value = Math.round(value * 1e4) / 1e4; };
      body = [label, exact, range];
    } else if (kind === "number") {
      const input = make("input", { type: "number", id, min: spec.min, step: spec.step });
      input.oninput = () => { if (input.value !== "") heard(Math.round(Number(input.value))); };
      set = (value) => (input.value = value);
      body = [label, input];
    } else if (kind === "switch") {
      const input = make("input", { type: "checkbox", id });
      input.onchange = () => heard(input.checked);
      set = (value) => (input.checked = value);
      body = [label, input];
    } else if (kind === "tokens") {
      const boxes = spec.choices.map((token) => make("input", { type: "checkbox", value: token, id: `${id}-${token}` }));
      const read = () => heard(boxes.filter((b) => b.checked).map((b) => Number(b.value)));
      boxes.forEach((b) => (b.onchange = read));
      set = (value) => boxes.forEach((b) => (b.checked = value.includes(Number(b.value))));
      const words = boxes.map((b, i) => make("label", { className: "token" }, b, PARTS[i]));
      return this.keep(name, set, make("fieldset", { className: "control wide" }, make("legend", {}, name), ...words));
    } else {
      const select = make("select", { id }, ...spec.choices.map((c) => make("option", {}, c)));
      select.onchange = () => heard(select.value);
      set = (value) => (select.value = value);
      body = [label, select];
    }
    return this.keep(name, set, make("div", { className: `control ${kind}` }, ...body));
  }

  keep(name, set, element) {
    this.inputs.set(name, { set, element });
    return element;
  }

  // Show these settings; those that differ from `stored` are marked.
  show(settings, stored) {
    for (const [name, { set }] of this.inputs) if (name in settings) set(settings[name]);
    this.mark(settings, stored);
  }

  mark(settings, stored) {
    for (const [name, { element }] of this.inputs) {
      element.classList.toggle("moved", String(settings[name]) !== String(stored[name]));
    }
  }
}

// What the filter kept, and which setting dropped how many.
export function showOutcome(answer, stored) {
  const kept = answer.masks.length;
  let words = `${whole(kept)} of ${whole(answer.candidates)} candidates are masks`;
  if (stored) {
    const before = new Set(stored.map((m) => m.id)), now = new Set(answer.masks.map((m) => m.id));
    const came = answer.masks.filter((m) => !before.has(m.id)).length;
    const went = stored.filter((m) => !now.has(m.id)).length;
    words += came || went ? `: ${came} came, ${went} went` : ", as stored";
  }
  $("kept").textContent = words;
  const most = Math.max(1, ...Object.values(answer.dropped));
  $("dropped").replaceChildren(...Object.entries(answer.dropped).sort((a, b) => b[1] - a[1]).map(([name, n]) =>
    make("li", {}, make("span", {}, name), make("b", {}, whole(n)), bar(n / most))));
}
