// The left panel: a shelf of the build's images, in some order, or what a search found.

import { $, make, number, whole } from "./panel.js";

export async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const tree = await answer.json();
  if (!answer.ok) throw new Error(tree.error);
  return tree;
}

// The address of an image's pixels; size: small or large.
export const pixels = (entry, size) => `/pixels?${new URLSearchParams({ unit: entry.unit, id: entry.image_id, size })}`;

const ORDER = {
  key: () => 0,
  most: (a, b) => (b.masks ?? -1) - (a.masks ?? -1),
  fewest: (a, b) => (a.masks ?? 1e9) - (b.masks ?? 1e9),
  best: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  worst: (a, b) => (a.score ?? 2) - (b.score ?? 2),
  status: (a, b) => (b.status === "quarantined") - (a.status === "quarantined"),
};

export class ImageList {
  // `filter` gives the name of the filter that is looked at, `open` shows one of `images`.
  constructor(filter, open) {
    this.filter = filter;
    this.open = open;
    this.shelf = this.found = this.shown = null;
    this.images = [];
    this.at = -1;
    this.searches = 0;
    $("sort").onchange = () => this.draw();
    $("search").onsubmit = (e) => { e.preventDefault(); this.search(); };
    $("words").oninput = () => { clearTimeout(this.typed); this.typed = setTimeout(() => this.search(), 250); };
    $("jump").onchange = () => this.go({ start: $("jump").value });
    $("shelf-before").onclick = () => this.go({ start: this.shelf.previous });
    $("shelf-after").onclick = () => this.go({ start: this.shelf.next });
  }

  // Read a shelf: from unit number `start`, or from the one called `unit`.
  async read(where) {
    this.shelf = await ask("/api/shelf", { ...where, filter: this.filter() });
    this.found = null;
    const { start, end, units, previous, next, broken } = this.shelf;
    $("shelves").hidden = units === end && start === 0;
    $("jump").max = units - 1;
    $("jump").value = start;
    $("shelf-before").disabled = previous === null;
    $("shelf-after").disabled = next === null;
    $("broken").hidden = broken.length === 0;
    $("broken").textContent = `${whole(broken.length)} of these units cannot be read (maskmill verify says more): ${broken.join("; ")}`;
    this.draw();
  }

  async go(where, last = false) {
    await this.read(where);
    await this.open(last ? this.images.length - 1 : 0);
  }

  draw() {
    const entries = this.found ? this.found.images : this.shelf.images;
    this.images = [...entries].sort(ORDER[$("sort").value]);
    const { start, end, units } = this.shelf;
    const part = `units ${start + 1}\u2013${end} of ${whole(units)}`;
    const on = this.found?.next ?? null;
    if (this.found) $("shown").textContent = `${whole(entries.length)} found${on === null ? "" : ` in ${whole(on)} of ${whole(units)} units`}`;
    else $("shown").textContent = `${whole(entries.length)} images${end - start < units ? `, sorted among ${part}` : ""}`;
    $("list").replaceChildren(...this.images.map((entry, index) => this.item(entry, index)));
    if (on !== null) $("list").append(make("li", {}, make("button", { className: "more", onclick: () => this.searchOn() }, "Search on")));
    this.mark(this.shown);
  }

  item(entry, index) {
    const bad = entry.status === "quarantined";
    const thumb = bad ? make("i", { className: "thumb" }, "!") : make("img", { className: "thumb", loading: "lazy", alt: "", src: pixels(entry, "small") });
    thumb.onerror = () => thumb.replaceWith(make("i", { className: "thumb" }, ""));
    const masks = entry.masks === null ? "not filtered yet" : `${whole(entry.masks)} masks`;
    const facts = bad ? "quarantined" : masks + (entry.score === null ? "" : `, ${number(entry.score, 2)}`);
    return make("li", {}, make("button", { onclick: () => this.open(index), title: `${entry.shard} ${entry.key}` }, thumb,
      make("span", {}, make("b", {}, entry.key), make("small", { className: bad ? "bad" : "" }, facts))));
  }

  // Mark the image that is shown.
  mark(image) {
    this.shown = image;
    $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
    this.at = this.images.findIndex((e) => image && e.unit === image.unit && e.image_id === image.image_id);
    const button = $("list").children[this.at]?.querySelector("button");
    button?.setAttribute("aria-current", "true");
    button?.scrollIntoView({ block: "nearest" });
    $("place").textContent = this.at < 0 ? "" : `${whole(this.at + 1)} of ${whole(this.images.length)}`;
  }

  // The next or the previous image, on the next shelf if need be.
  step(by) {
    if (this.at < 0 && this.images.length) return this.open(0);
    const to = this.at + by;
    if (to >= 0 && to < this.images.length) return this.open(to);
    const start = by > 0 ? this.shelf.next : this.shelf.previous;
    if (!this.found && start !== null) return this.go({ start }, by < 0);
  }

  // The server searches unit by unit; what it found so far is shown.
  async search() {
    const words = $("words").value.trim();
    this.searches++;
    this.found = words ? { words, images: [], next: 0 } : null;
    if (!words) return this.draw();
    await this.searchOn();
  }

  async searchOn() {
    const mine = this.searches, found = this.found, before = found.images.length;
    while (found.next !== null && found.images.length < before + 100) {
      const part = await ask("/api/find", { words: found.words, start: found.next, filter: this.filter() });
      if (mine !== this.searches) return;
      found.images.push(...part.images);
      found.next = part.next;
      this.draw();
    }
  }
}
