// The picture: the image, all masks on it, the one under the pointer and the chosen one; zoom and pan.

import { colourOf, paintLabels, paintPart, rect, shape } from "./draw.js";
import { covers, fill, fillBox, forget, runs } from "./rle.js";

const PIXELS = 6e6; // of the largest canvas; beyond, every second, third ... row and column is drawn

export class Stage {
  // `heard` is told of: hover(mask or null), choose(mask or null), zoom(scale).
  constructor(root, heard) {
    this.root = root;
    this.heard = heard;
    this.board = root.querySelector(".board");
    this.picture = root.querySelector("img");
    [this.all, this.focus] = root.querySelectorAll("canvas");
    this.marks = root.querySelector("svg");
    this.look = { masks: true, outlines: false, opacity: 0.5, colour: "mask" };
    this.size = [1, 1];
    this.masks = [];
    this.scratch = document.createElement("canvas");
    this.pointers = new Map();
    this.listen();
  }

  // Begin another image of width x height; `url` null: grey; undefined: no image at all.
  open(width, height, url) {
    forget();
    this.size = [width, height];
    this.root.classList.toggle("blank", url === undefined);
    this.step = Math.max(1, Math.ceil(Math.sqrt((width * height) / PIXELS)));
    this.gw = Math.ceil(width / this.step);
    this.gh = Math.ceil(height / this.step);
    this.labels = new Uint16Array(this.gw * this.gh);
    for (const canvas of [this.all, this.focus]) {
      canvas.width = this.gw;
      canvas.height = this.gh;
    }
    for (const element of [this.board, this.picture, this.all, this.focus, this.marks]) {
      element.style.width = `${width}px`;
      element.style.height = `${height}px`;
    }
    this.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.style.visibility = url ? "visible" : "hidden";
    if (url) this.picture.src = url;
    else this.picture.removeAttribute("src");
    this.masks = [];
    this.hovered = this.chosen = null;
    this.marks.replaceChildren();
    this.fit();
  }

  // Draw these masks; the chosen one stays chosen if it is among them.
  show(masks) {
    this.masks = [...masks].sort((a, b) => b.area - a.area || a.id - b.id);
    this.hovered = null;
    const chosen = this.chosen && this.masks.find((m) => m.id === this.chosen.id);
    this.paint();
    this.choose(chosen || null);
  }

  paint() {
    const begun = performance.now();
    const { masks, labels, gw, gh, look } = this;
    labels.fill(0);
    masks.forEach((m, i) => fill(runs(m.counts), i + 1, labels, this.size[1], gh, this.step));
    const colours = masks.map((m) => this.colour(m));
    const image = paintLabels(labels, gw, gh, colours, look.outlines ? 0 : look.opacity, this.lineWidth());
    this.all.getContext("2d").putImageData(image, 0, 0);
    this.all.style.visibility = look.masks ? "visible" : "hidden";
    performance.measure("paint", { start: begun, end: performance.now() });
  }

  colour(mask) {
    return colourOf(mask, this.look);
  }

  lineWidth() {
    return Math.min(12, Math.max(1, Math.round(1.6 / (this.scale * this.step))));
  }

  hover(mask) {
    if (mask === this.hovered) return;
    this.hovered = mask;
    this.drawFocus();
    this.heard.hover(mask);
  }

  choose(mask) {
    this.chosen = mask;
    this.board.classList.toggle("chosen", mask !== null);
    this.drawFocus();
    this.drawMarks();
    this.heard.choose(mask);
  }

  drawFocus() {
    const begun = performance.now();
    const context = this.focus.getContext("2d");
    context.clearRect(0, 0, this.gw, this.gh);
    if (this.chosen) {
      context.fillStyle = "rgb(0 0 0 / 0.58)";
      context.fillRect(0, 0, this.gw, this.gh);
      this.stamp(context, this.chosen, "destination-out", [0, 0, 0], 255, 0);
      this.stamp(context, this.chosen, "source-over", [255, 255, 255], 0, 255);
    }
    if (this.hovered && this.hovered !== this.chosen) {
      this.stamp(context, this.hovered, "source-over", [255, 255, 255], 70, 255);
    }
    performance.measure("hover", { start: begun, end: performance.now() });
  }

  // One mask on a canvas: its inside and its edge with these alphas.
  stamp(context, mask, how, colour, alpha, edgeAlpha) {
    const { step, gw, gh } = this;
    const [bx, by, bw, bh] = mask.box;
    const x0 = Math.floor(bx / step), y0 = Math.floor(by / step);
    const w = Math.min(gw, Math.floor((bx + bw) / step) + 1) - x0;
    const h = Math.min(gh, Math.floor((by + bh) / step) + 1) - y0;
    if (w <= 0 || h <= 0) return;
    const part = new Uint8Array(w * h);
    fillBox(runs(mask.counts), part, this.size[1], step, x0, y0, w, h);
    this.scratch.width = w;
    this.scratch.height = h;
    const image = paintPart(part, w, h, colour, alpha, edgeAlpha, this.lineWidth());
    this.scratch.getContext("2d").putImageData(image, 0, 0);
    context.globalCompositeOperation = how;
    context.drawImage(this.scratch, x0, y0);
    context.globalCompositeOperation = "source-over";
  }

  // Box, crop and prompt point of the chosen mask.
  drawMarks() {
    this.marks.replaceChildren();
    if (!this.chosen) return;
    const { box, crop, point } = this.chosen;
    const [width, height] = this.size;
    if (crop && (crop[2] < width || crop[3] < height)) this.marks.append(shape("rect", "crop", rect(crop)));
    this.marks.append(shape("rect", "box", rect([box[0], box[1], box[2] + 1, box[3] + 1])));
    if (point) this.marks.append(shape("circle", "point", { cx: point[0], cy: point[1], r: 5 / this.scale }));
  }

  // All masks at a place, the smallest first.
  at(x, y) {
    const index = Math.floor(x) * this.size[1] + Math.floor(y);
    const near = ({ box }) => x >= box[0] && x <= box[0] + box[2] + 1 && y >= box[1] && y <= box[1] + box[3] + 1;
    return this.masks.filter((m) => near(m) && covers(runs(m.counts), index)).reverse();
  }

  top(x, y) {
    const [width, height] = this.size;
    if (!this.look.masks || x < 0 || y < 0 || x >= width || y >= height) return null;
    const i = Math.floor(x / this.step) * this.gh + Math.floor(y / this.step);
    return this.masks[this.labels[i] - 1] || null;
  }

  // Zoom and pan

  fit() {
    const { clientWidth: w, clientHeight: h } = this.root, [width, height] = this.size;
    this.scale = Math.min((w - 24) / width, (h - 24) / height, 8);
    this.x = (w - width * this.scale) / 2;
    this.y = (h - height * this.scale) / 2;
    this.fitted = true;
    this.place();
  }

  zoom(factor, cx = this.root.clientWidth / 2, cy = this.root.clientHeight / 2) {
    const scale = Math.min(40, Math.max(0.02, this.scale * factor));
    this.x = cx - ((cx - this.x) * scale) / this.scale;
    this.y = cy - ((cy - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.place();
  }

  place() {
    this.board.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.board.classList.toggle("near", this.scale * this.step > 2.5);
    this.heard.zoom(this.scale);
    const width = this.lineWidth();
    if (width !== this.drawnWidth && this.labels) {
      this.drawnWidth = width;
      clearTimeout(this.later);
      this.later = setTimeout(() => { this.paint(); this.drawFocus(); }, 80);
    }
    for (const point of this.marks.querySelectorAll(".point")) point.setAttribute("r", 5 / this.scale);
  }

  listen() {
    const root = this.root;
    root.addEventListener("wheel", (e) => {
      e.preventDefault();
      const [cx, cy] = this.local(e);
      this.zoom(Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0018)), cx, cy);
    }, { passive: false });
    root.addEventListener("pointerdown", (e) => {
      if (e.button !== 0 || e.target.closest("button")) return;
      root.setPointerCapture(e.pointerId);
      this.pointers.set(e.pointerId, [e.clientX, e.clientY]);
      this.moved = this.pointers.size > 1 ? 99 : 0;
    });
    root.addEventListener("pointermove", (e) => this.move(e));
    root.addEventListener("pointerup", (e) => {
      const down = this.pointers.delete(e.pointerId);
      root.classList.remove("dragging");
      if (down && this.moved < 6 && e.button === 0) this.click(...this.local(e));
    });
    root.addEventListener("pointercancel", (e) => this.pointers.delete(e.pointerId));
    root.addEventListener("pointerleave", () => this.hover(null));
    root.addEventListener("dblclick", () => this.fit());
    new ResizeObserver(() => { if (this.fitted) this.fit(); }).observe(root);
  }

  local(e) {
    const frame = this.root.getBoundingClientRect();
    return [e.clientX - frame.left, e.clientY - frame.top];
  }

  move(e) {
    const [cx, cy] = this.local(e);
    const before = this.pointers.get(e.pointerId);
    if (!before) {
      if (e.pointerType !== "touch") this.hover(this.top((cx - this.x) / this.scale, (cy - this.y) / this.scale));
      return;
    }
    const spread = () => {
      const [a, b] = [...this.pointers.values()];
      return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
    };
    const old = spread();
    this.pointers.set(e.pointerId, [e.clientX, e.clientY]);
    if (old) return this.zoom(spread() / old, cx, cy);
    const dx = e.clientX - before[0], dy = e.clientY - before[1];
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.moved < 6) return;
    this.root.classList.add("dragging");
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.place();
  }

  // The smallest mask at the place; again at the same place: the next larger one.
  click(cx, cy) {
    const found = this.look.masks ? this.at((cx - this.x) / this.scale, (cy - this.y) / this.scale) : [];
    const again = found.indexOf(this.chosen);
    this.hover(null);
    this.choose(found.length === 0 ? null : found[(again + 1) % found.length]);
  }
}
