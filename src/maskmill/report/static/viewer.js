// The viewer: which image, which filter, and what the keys do. stage.js draws, list.js and panel.js are at its sides.

import { LAYERS, ramp } from "./draw.js";
import { ask, ImageList, pixels } from "./list.js";
import { $, Controls, copyText, make, markRow, number, showDetail, showOutcome, showRows, whole } from "./panel.js";
import { Stage } from "./stage.js";

const state = { build: null, filter: "", image: null, settings: {} };
let controls = null;

const images = new ImageList(() => state.filter, open);

const stage = new Stage($("stage"), {
  hover: showTip,
  choose(mask) {
    if (mask) showTab("mask");
    markRow(mask);
    showDetail(mask, state.image, (m) => stage.choose(m));
  },
  zoom(scale) {
    $("fit").textContent = `${Math.round(scale * 100)}%`;
    $("fit").ariaLabel = `Fit to the window; now ${$("fit").textContent}`;
  },
});

const stored = () => state.build.filters[state.filter] ?? {};
const changedNames = () => Object.keys(state.settings).filter((n) => String(state.settings[n]) !== String(stored()[n]));

// The build

async function begin() {
  const build = (state.build = await ask("/api/build", {}));
  document.title = `${build.name} - maskmill`;
  $("name").textContent = build.name;
  $("name").title = build.path;
  $("state").textContent = build.finished ? "" : "not finished";
  $("filter").replaceChildren(...Object.keys(build.filters).map((name) => make("option", {}, name)));
  state.filter = $("filter").value = build.filter;
  state.settings = { ...stored() };
  controls = new Controls(build.controls, moved);
  controls.show(state.settings, stored());
  if (!build.candidates) $("kept").textContent = "This build keeps no candidates (--no-candidates), so its filter cannot be moved.";
  $("colour").querySelector('[value="layer"]').hidden = build.layers === 0;
  const [unit, id] = decodeURIComponent(location.hash.slice(1)).split("/");
  if (build.units === 0) return notice("No unit of this build is committed yet. Reload this page later.");
  await images.read(unit ? { unit } : { start: 0 });
  const linked = images.images.findIndex((e) => e.unit === unit && e.image_id === id);
  await open(Math.max(0, linked));
}

// One image

let opening = 0;

async function open(index) {
  const entry = images.images[index];
  if (!entry) return;
  const mine = ++opening;
  let image;
  try {
    image = await ask("/api/image", { unit: entry.unit, id: entry.image_id, filter: state.filter });
  } catch (e) {
    return notice(e.message);
  }
  if (mine !== opening) return;
  state.image = image;
  history.replaceState(null, "", `#${encodeURIComponent(`${entry.unit}/${entry.image_id}`)}`);
  images.mark(image);
  const url = image.original === null ? pixels(entry, "large") : null;
  stage.open(image.width ?? 1, image.height ?? 1, image.width === null ? undefined : url);
  if (image.status === "quarantined") notice(`Quarantined: ${image.error}`);
  else if (image.original !== null) notice(`The image cannot be shown: ${image.original}`);
  else if (image.stored === null) notice("This filter has not reached this image yet.");
  else notice(null);
  await masks();
}

// The stored masks, or those of the settings that are being tried.
async function masks() {
  const image = state.image;
  if (!image) return;
  const trying = changedNames().length > 0;
  showCommand(trying);
  if (!trying) draw(image.stored ?? []);
  if (state.build.candidates && image.status !== "quarantined") await refilter();
  else if (state.build.candidates) { $("kept").textContent = ""; $("dropped").replaceChildren(); }
}

function draw(rows) {
  stage.show(rows);
  showRows(stage, (m) => stage.choose(m));
  markRow(stage.chosen);
}

// One request at a time; what is moved meanwhile is asked for when it is back.
let busy = false, again = false;

async function refilter() {
  if (busy) return void (again = true);
  busy = true;
  const image = state.image, trying = changedNames().length > 0, settings = JSON.stringify(state.settings);
  try {
    const answer = await ask("/api/refilter", { unit: image.unit, id: image.image_id, settings });
    if (image === state.image) {
      showOutcome(answer, image.stored);
      if (trying) draw(answer.masks);
    }
  } catch (e) {
    if (image === state.image) $("kept").textContent = e.message;
  }
  busy = false;
  if (again) {
    again = false;
    await masks();
  }
}

function moved(name, value) {
  state.settings[name] = value;
  controls.mark(state.settings, stored());
  masks();
}

function showCommand(trying) {
  $("live").hidden = $("command").hidden = !trying;
  const own = state.build.filters[state.build.filter];
  const moved = Object.entries(state.settings).filter(([name, value]) => String(value) !== String(own[name]));
  const set = moved.map(([name, value]) => ` \\\n  --set ${quote(`filter.${name}=${Array.isArray(value) ? JSON.stringify(value) : value}`)}`);
  $("words-of-command").textContent = `maskmill filter ${quote(state.build.path)} --name NEW${set.join("")}`;
}

const quote = (text) => (/^[\w./:=@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function notice(words) {
  $("notice").hidden = words === null;
  $("notice").textContent = words ?? "";
}

function showTip(mask) {
  const tip = $("tip");
  tip.hidden = !mask;
  if (mask) tip.textContent = `${mask.id}   IoU ${number(mask.predicted_iou, 2)}   stability ${number(mask.stability_score, 2)}   ${whole(mask.area)} px`;
}

// On a small screen one panel is shown at a time.
function showTab(name) {
  document.body.dataset.tab = name;
  for (const tab of $("tabs").children) tab.setAttribute("aria-pressed", String(tab.dataset.tab === name));
}

// Buttons and keys

function stepMask(by) {
  const { masks } = stage;
  if (!masks.length) return;
  const at = masks.indexOf(stage.chosen);
  stage.choose(masks[at < 0 ? 0 : Math.min(masks.length - 1, Math.max(0, at + by))]);
}

function toggle(name) {
  stage.look[name] = !stage.look[name];
  $(name).setAttribute("aria-pressed", String(stage.look[name]));
  stage.paint();
}

function colour() {
  const by = (stage.look.colour = $("colour").value);
  const column = stage.masks.map((m) => m[by]).filter((v) => typeof v === "number");
  stage.look.low = by.includes("_") && column.length ? Math.floor(Math.min(...column) * 20) / 20 : 0;
  const bands = by === "layer" ? LAYERS.slice(0, state.build.layers + 1) : [0, 0.25, 0.5, 0.75, 1].map((v) => ramp(v, 0, 1));
  const strip = make("i");
  strip.style.background = `linear-gradient(90deg, ${bands.map((c) => `rgb(${c.map(Math.round).join(" ")})`).join(", ")})`;
  $("key").replaceChildren(...(by === "mask" ? [] : [by === "layer" ? "0" : number(stage.look.low, 2), strip, by === "layer" ? String(state.build.layers) : "1"]));
  stage.paint();
  showRows(stage, (m) => stage.choose(m));
  markRow(stage.chosen);
}

const KEYS = {
  ArrowLeft: () => images.step(-1),
  ArrowRight: () => images.step(1),
  ArrowUp: () => stepMask(-1),
  ArrowDown: () => stepMask(1),
  Escape: () => stage.choose(null),
  m: () => toggle("masks"),
  o: () => toggle("outlines"),
  "+": () => stage.zoom(1.3),
  "=": () => stage.zoom(1.3),
  "-": () => stage.zoom(1 / 1.3),
  0: () => stage.fit(),
  "/": () => $("words").focus(),
  "?": () => $("help").click(),
};

document.addEventListener("keydown", (e) => {
  const typing = e.target.matches("input, select, textarea");
  if (typing && e.key === "Escape") return e.target.blur();
  const act = KEYS[e.key.length === 1 ? e.key.toLowerCase() : e.key];
  if (!act || typing || e.ctrlKey || e.metaKey || e.altKey) return;
  e.preventDefault();
  act();
});

$("before").onclick = () => images.step(-1);
$("after").onclick = () => images.step(1);
$("masks").onclick = () => toggle("masks");
$("outlines").onclick = () => toggle("outlines");
$("opacity").oninput = () => { stage.look.opacity = Number($("opacity").value); stage.paint(); };
$("colour").onchange = colour;
$("in").onclick = () => stage.zoom(1.3);
$("out").onclick = () => stage.zoom(1 / 1.3);
$("fit").onclick = () => stage.fit();
$("help").onclick = () => $("help").setAttribute("aria-expanded", String(!($("keys").hidden = !$("keys").hidden)));
$("copy-command").onclick = () => copyText($("words-of-command").textContent, $("copy-command"));
$("reset").onclick = () => { state.settings = { ...stored() }; controls.show(state.settings, stored()); masks(); };
$("filter").onchange = async () => {
  const { start } = images.shelf, id = state.image?.image_id;
  state.filter = $("filter").value;
  state.settings = { ...stored() };
  controls.show(state.settings, stored());
  await images.read({ start });
  await open(Math.max(0, images.images.findIndex((e) => e.image_id === id)));
};
for (const tab of $("tabs").children) tab.onclick = () => showTab(tab.dataset.tab);
$("stage").querySelector("img").onerror = () => notice("The image cannot be decoded by the viewer.");

window.addEventListener("unhandledrejection", (e) => notice(e.reason.message));
begin().catch((e) => notice(e.message));
