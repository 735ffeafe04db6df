"use strict";
/* The map. Points are stamped into a pixel buffer (no library, no GPU needed), what moves is drawn above it; a grid finds
   the clip under the pointer. Users' names reach the page as text nodes only. */
(async () => {
const $ = (id) => document.getElementById(id);
const SPAN = 65535, CELLS = 128, CELL = 512, REACH = 14, MOST_LISTED = 100;
const RULE_COLOURS = ["#d6453d", "#c2257a", "#e07b00", "#8f5a3c", "#9a8f00", "#8a5cd0", "#0a8f9c", "#b0447f", "#6b7d1f", "#5b6fb5"];
const DRAWN = ["pool", "eval", "dropped", "neighbour", "seed"];  // the last above the others

async function unpack(id) {
  const text = atob($(id).textContent.trim()), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  $(id).remove();
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
if (!("DecompressionStream" in window)) {
  $("state").textContent = "This browser is too old for the map: it needs one of 2023 or later.";
  return;
}
const data = JSON.parse(new TextDecoder().decode(await unpack("data")));
const pictures = new Uint8Array(await unpack("pictures"));
const n = data.x.length, X = Uint16Array.from(data.x), Y = Uint16Array.from(data.y), role = Uint8Array.from(data.role);
const rule = Int8Array.from(data.rule), rate = Int16Array.from(data.rate), best = Int32Array.from(data.best);
const neighbourAt = Int32Array.from(data.neighbours), perSeed = data.lines_per_seed;
const SEED = data.roles.indexOf("seed"), DROPPED = data.roles.indexOf("dropped");
const placeOfSeed = new Map(data.seeds.map((at, i) => [at, i]));
const pictureOf = new Map(data.pictured.map((at, i) => [at, i]));
const lowered = data.id.map((id) => id.toLowerCase()), labelsLowered = data.labels.map((label) => label.toLowerCase());
const labelsOf = (i) => data.labelled[i].map((label) => data.labels[label]).join(", ");
const order = DRAWN.map((name) => Int32Array.from([...role.keys()].filter((i) => role[i] === data.roles.indexOf(name))));
const shown = new Uint8Array(n).fill(1), chosen = new Uint8Array(n);

/* who has it among its neighbours: the reverse of the lines */
const chosenBy = new Map();
for (let s = 0; s < data.seeds.length; s++) for (let r = 0; r < perSeed; r++) {
  const at = neighbourAt[s * perSeed + r];
  if (at >= 0) chosenBy.has(at) ? chosenBy.get(at).push(s * perSeed + r) : chosenBy.set(at, [s * perSeed + r]);
}

/* the grid */
const cellOf = (i) => (Y[i] / CELL | 0) * CELLS + (X[i] / CELL | 0);
const firstOf = new Int32Array(CELLS * CELLS + 1), inCells = new Int32Array(n);
for (let i = 0; i < n; i++) firstOf[cellOf(i) + 1]++;
for (let c = 0; c < CELLS * CELLS; c++) firstOf[c + 1] += firstOf[c];
const next = firstOf.slice();
for (let i = 0; i < n; i++) inCells[next[cellOf(i)]++] = i;

/* the view: pixels of the screen per unit of the map, and the map's point in the middle */
const points = $("points"), over = $("over"), onPoints = points.getContext("2d"), onOver = over.getContext("2d");
let width = 1, height = 1, ratio = 1, view = { x: SPAN / 2, y: SPAN / 2, scale: 1 }, image = null, buffer = null;
let picked = -1, hovered = -1, matches = [], listed = [], listedAt = -1, lasso = null, lassoMode = false, queued = false, numChosen = 0;
const toX = (x) => (x - view.x) * view.scale + width / 2, toY = (y) => (view.y - y) * view.scale + height / 2;
const fromX = (x) => (x - width / 2) / view.scale + view.x, fromY = (y) => view.y - (y - height / 2) / view.scale;
const bounds = { x: range(X), y: range(Y) };
function range(values) { let low = SPAN, high = 0; for (const v of values) { if (v < low) low = v; if (v > high) high = v; } return [low, high]; }
let fitted = null; // the view as it was last fitted: until the reader moves it, another size fits it anew
function fit() {
  const wide = Math.max(bounds.x[1] - bounds.x[0], 1), high = Math.max(bounds.y[1] - bounds.y[0], 1);
  view = { x: (bounds.x[0] + bounds.x[1]) / 2, y: (bounds.y[0] + bounds.y[1]) / 2, scale: 0.92 * Math.min(width / wide, height / high) };
  fitted = { ...view };
  redraw();
}
function zoom(factor, x = width / 2, y = height / 2) {
  const ax = fromX(x), ay = fromY(y);
  view.scale = Math.min(Math.max(view.scale * factor, 1e-4), 20);
  view.x = ax - (x - width / 2) / view.scale;
  view.y = ay + (y - height / 2) / view.scale;
  redraw();
}
function resize() {
  const first = !image;
  ratio = window.devicePixelRatio || 1;
  width = over.clientWidth || 1; height = over.clientHeight || 1;
  for (const canvas of [points, over]) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
  image = onPoints.createImageData(points.width, points.height);
  buffer = new Uint32Array(image.data.buffer);
  const unmoved = fitted && fitted.x === view.x && fitted.y === view.y && fitted.scale === view.scale;
  first || unmoved ? fit() : redraw();
}

/* colours: the page's own, as numbers in the buffer's byte order (A B G R) */
let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement), at = (name) => style.getPropertyValue(name).trim();
  colours = { paper: at("--paper"), ink: at("--ink"), quiet: at("--quiet"), seed: at("--random"), neighbour: at("--chosen"), pool: at("--quiet"), eval: at("--other"), line: at("--ink") };
}
function number(css) {
  const c = document.createElement("canvas").getContext("2d");
  c.fillStyle = css; c.fillRect(0, 0, 1, 1);
  const [r, g, b] = c.getImageData(0, 0, 1, 1).data;
  return (0xff000000 | b << 16 | g << 8 | r) >>> 0;
}
const colourOf = (name, ruleNumber) => name === "dropped" ? RULE_COLOURS[Math.max(ruleNumber, 0) % RULE_COLOURS.length] : colours[name];

/* shapes, so that nothing is told by colour alone */
function shape(context, name, x, y, r) {
  context.beginPath();
  if (name === "seed") { context.moveTo(x, y - r * 1.35); context.lineTo(x + r * 1.35, y); context.lineTo(x, y + r * 1.35); context.lineTo(x - r * 1.35, y); context.fill(); }
  else if (name === "eval") { context.moveTo(x, y - r * 1.25); context.lineTo(x + r * 1.15, y + r); context.lineTo(x - r * 1.15, y + r); context.fill(); }
  else if (name === "dropped") { context.lineWidth = Math.max(r * 0.55, 1); context.moveTo(x - r, y - r); context.lineTo(x + r, y + r); context.moveTo(x + r, y - r); context.lineTo(x - r, y + r); context.stroke(); }
  else { context.arc(x, y, name === "pool" ? r * 0.7 : r, 0, 7); context.fill(); }
}
function stamp(name, r) {
  const half = Math.ceil(r * 1.5) + 1, size = 2 * half + 1, canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), offsets = [], alphas = [];
  shape(context, name, half + 0.5, half + 0.5, r);
  const pixels = context.getImageData(0, 0, size, size).data;
  for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
    const alpha = pixels[(y * size + x) * 4 + 3];
    if (alpha > 15) { offsets.push((y - half) * points.width + x - half); alphas.push(alpha); }
  }
  return { half, offsets: Int32Array.from(offsets), alphas: Uint8Array.from(alphas) };
}
function drawPoints() {
  buffer.fill(number(colours.paper));
  const full = 0.92 * Math.min(width, height) / SPAN;
  const r = ratio * Math.min(7, (n > 20000 ? 1.6 : n > 3000 ? 2.4 : 3.6) * Math.max(1, Math.pow(view.scale / full, 0.4)));
  const w = points.width, h = points.height, ruleNumbers = RULE_COLOURS.map(number);
  for (let o = 0; o < DRAWN.length; o++) {
    const { half, offsets, alphas } = stamp(DRAWN[o], r), isDropped = DRAWN[o] === "dropped";
    const plain = isDropped ? 0 : number(colours[DRAWN[o]]), many = offsets.length;
    for (const i of order[o]) {
      if (!shown[i]) continue;
      const x = Math.round(toX(X[i]) * ratio), y = Math.round(toY(Y[i]) * ratio);
      if (x < half || y < half || x >= w - half || y >= h - half) continue;
      const colour = isDropped ? ruleNumbers[Math.max(rule[i], 0) % ruleNumbers.length] : plain, base = y * w + x;
      for (let m = 0; m < many; m++) {
        const a = alphas[m], at = base + offsets[m];
        if (a === 255) { buffer[at] = colour; continue; }
        const under = buffer[at], b = 255 - a;
        buffer[at] = (0xff000000 | (((colour >>> 16 & 255) * a + (under >>> 16 & 255) * b) / 255) << 16 |
          (((colour >>> 8 & 255) * a + (under >>> 8 & 255) * b) / 255) << 8 | ((colour & 255) * a + (under & 255) * b) / 255) >>> 0;
      }
    }
  }
  onPoints.putImageData(image, 0, 0);
}
function ring(i, r, line) {
  onOver.lineWidth = line;
  onOver.beginPath(); onOver.arc(toX(X[i]), toY(Y[i]), r, 0, 7); onOver.stroke();
}
function drawOver() {
  onOver.setTransform(ratio, 0, 0, ratio, 0, 0);
  onOver.clearRect(0, 0, width, height);
  onOver.strokeStyle = colours.ink;
  if (picked >= 0) {
    onOver.lineWidth = 1; onOver.globalAlpha = 0.75;
    for (const { at } of near(picked)) if (at >= 0) { onOver.beginPath(); onOver.moveTo(toX(X[picked]), toY(Y[picked])); onOver.lineTo(toX(X[at]), toY(Y[at])); onOver.stroke(); }
    onOver.globalAlpha = 1;
    ring(picked, 9, 2.5);
  }
  for (const i of matches.slice(0, 1000)) if (shown[i]) ring(i, 6, 1.2);
  if (numChosen) { onOver.strokeStyle = colours.seed; for (let i = 0, left = 3000; i < n && left; i++) if (chosen[i]) { ring(i, 5, 1.2); left--; } }
  onOver.strokeStyle = colours.ink;
  if (hovered >= 0) ring(hovered, 7, 1.5);
  if (lasso) {
    onOver.setLineDash([5, 4]); onOver.lineWidth = 1.5; onOver.beginPath();
    lasso.forEach(([x, y], i) => i ? onOver.lineTo(x, y) : onOver.moveTo(x, y));
    onOver.closePath(); onOver.stroke(); onOver.setLineDash([]);
  }
}
function redraw(all = true) {
  queued = all || queued === "all" ? "all" : "over";
  if (redraw.waiting) return;
  redraw.waiting = true;
  requestAnimationFrame(() => { redraw.waiting = false; if (queued === "all") drawPoints(); drawOver(); queued = false; });
}

/* the exact neighbours of a seed, the seeds of another clip: best first */
function near(i) {
  const s = placeOfSeed.get(i);
  if (s !== undefined) return Array.from({ length: perSeed }, (_, r) => ({ at: neighbourAt[s * perSeed + r], similarity: data.similarities[s * perSeed + r], rank: r + 1 }));
  const pairs = (chosenBy.get(i) || []).map((p) => ({ at: data.seeds[p / perSeed | 0], similarity: data.similarities[p], rank: p % perSeed + 1 }));
  return pairs.sort((a, b) => b.similarity - a.similarity || a.rank - b.rank);
}
function under(x, y) {
  const reach = REACH / view.scale, cx = fromX(x), cy = fromY(y);
  let found = -1, least = REACH * REACH;
  const cell = (v) => Math.min(Math.max(v / CELL | 0, 0), CELLS - 1);
  for (let gy = cell(cy - reach); gy <= cell(cy + reach); gy++) for (let gx = cell(cx - reach); gx <= cell(cx + reach); gx++) {
    for (let p = firstOf[gy * CELLS + gx]; p < firstOf[gy * CELLS + gx + 1]; p++) {
      const i = inCells[p], dx = toX(X[i]) - x, dy = toY(Y[i]) - y, far = dx * dx + dy * dy;
      if (shown[i] && (far < least || far === least && role[i] < role[found])) { found = i; least = far; }
    }
  }
  return found;
}

/* text */
function line(text, kind) { const p = document.createElement("p"); p.textContent = text; if (kind) p.className = kind; return p; }
function button(text, small, act, current) {
  const b = document.createElement("button"); b.append(text);
  if (small) { const s = document.createElement("span"); s.className = "quiet"; s.textContent = " " + small; b.append(s); }
  if (current) b.setAttribute("aria-current", "true");
  b.addEventListener("click", act);
  const li = document.createElement("li"); li.append(b); return li;
}
function hover(i, x, y) {
  if (i !== hovered) { hovered = i; redraw(false); }
  const box = $("hover");
  box.hidden = i < 0;
  if (i < 0) return;
  const labels = labelsOf(i);
  box.replaceChildren(line(data.id[i], "name"), line(labels || "no labels"), line(data.why[i]));
  for (const p of box.children) p.style.margin = "0";
  box.style.left = Math.min(x + 14, Math.max(width - box.offsetWidth - 4, 4)) + "px";
  box.style.top = (y + 18 + box.offsetHeight > height ? Math.max(y - box.offsetHeight - 12, 4) : y + 18) + "px";
}
function picture(i) {
  const [w, h] = data.picture, at = pictureOf.get(i) * w * h, canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = w; canvas.height = h;
  canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", "Spectrogram of " + data.id[i]);
  const grey = context.createImageData(w, h);
  for (let p = 0; p < w * h; p++) grey.data.set([pictures[at + p], pictures[at + p], pictures[at + p], 255], 4 * p);
  context.putImageData(grey, 0, 0);
  return canvas;
}
function sources(i) {
  if (data.sounds[i]) return [data.sounds[i]];
  return data.audio[i] ? data.bases.map((base) => base + data.audio[i]) : [];
}
function load(i, play) {
  const player = $("player"), links = sources(i);
  player.hidden = !links.length;
  player.pause();
  player.setAttribute("aria-label", "Play " + data.id[i]);
  player.replaceChildren(...links.map((link) => { const s = document.createElement("source"); s.src = link; return s; }));
  const last = player.lastElementChild;
  if (last) last.addEventListener("error", () => $("clip").append(line("Its sound is not where the page looks for it: " + links[links.length - 1], "quiet")));
  player.load();
  if (links.length && play) player.play().catch(() => {});
}
function pick(i, play = true) {
  picked = i;
  if (i < 0) { $("clip").replaceChildren(); $("player").hidden = true; $("player").pause(); list("", []); redraw(false); return; }
  const parts = [line(data.id[i], "name"), line(labelsOf(i) || "no labels"), line(data.why[i])];
  const facts = [data.roles[role[i]]];
  if (rate[i] >= 0) facts.push(data.rates[rate[i]].toLocaleString("en") + " Hz");
  if (data.similarity[i] !== null) facts.push("best similarity " + data.similarity[i] + (best[i] >= 0 ? " with " + data.id[best[i]] : "") + (role[i] === DROPPED ? data.beside : ""));
  parts.push(line(facts.join(" · "), "quiet"));
  if (pictureOf.has(i)) parts.push(picture(i));
  else if (data.pictured.length) parts.push(line("No spectrogram: the page holds those of " + data.pictured.length.toLocaleString("en") + " clips (atlas.spectrograms).", "quiet"));
  if (!sources(i).length) parts.push(line("This page cannot play it: it lies in a container, or has no file.", "quiet"));
  const some = near(i), missing = some.filter(({ at }) => at < 0).length;
  const title = (role[i] === SEED ? "Its exact neighbours, best first" : "The seeds that have it among their neighbours") + (missing ? " (" + missing + " are not on this map)" : "") + ":";
  $("clip").replaceChildren(...parts);
  load(i, play);
  list(some.length ? title : "", some.filter(({ at }) => at >= 0).map(({ at, similarity, rank }) => ({ at, small: similarity.toFixed(4) + ", rank " + rank })));
  redraw(false);
}
function list(title, entries) {
  $("listed").textContent = title;
  listed = entries; listedAt = -1;
  $("list").replaceChildren(...entries.slice(0, MOST_LISTED).map(({ at, small }) => button(data.id[at], small, () => { look(at); pick(at); })));
  if (entries.length > MOST_LISTED) $("list").append(line("… and " + (entries.length - MOST_LISTED).toLocaleString("en") + " more", "quiet"));
}
function step(by) {
  if (!listed.length) return;
  listedAt = (listedAt + by + listed.length) % listed.length;
  const kept = listed, at = listedAt, i = listed[at].at;
  look(i); load(i, true); hovered = i;
  listed = kept; listedAt = at;
  [...$("list").querySelectorAll("button")].forEach((b, place) => place === at ? b.setAttribute("aria-current", "true") : b.removeAttribute("aria-current"));
  $("state").textContent = data.id[i] + ": " + data.why[i];
  redraw(false);
}
function look(i) {
  const x = toX(X[i]), y = toY(Y[i]);
  if (x < 20 || y < 20 || x > width - 20 || y > height - 20) { view.x = X[i]; view.y = Y[i]; redraw(); }
}

/* filters and legend in one */
const symbols = [];
function filters() {
  const box = $("filters"), active = { role: new Set(), rule: new Set(), rate: new Set(), label: -1 };
  const count = (values, of) => values.reduce((sum, v) => sum + (v === of), 0);
  function group(title, name, options) {
    const set = document.createElement("fieldset"), legend = document.createElement("legend");
    legend.textContent = title; set.append(legend);
    for (const { value, text, symbol } of options) {
      const label = document.createElement("label"), input = document.createElement("input");
      input.type = "checkbox"; input.checked = true; input.name = name; input.value = value;
      input.addEventListener("change", () => { input.checked ? active[name].delete(value) : active[name].add(value); apply(); });
      label.append(input);
      if (symbol) label.append(symbol());
      label.append(text); set.append(label);
    }
    if (options.length) box.append(set);
  }
  const symbol = (name, ruleNumber) => () => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    symbols.push(() => {
      canvas.width = canvas.height = 36;
      context.fillStyle = context.strokeStyle = colourOf(name, ruleNumber);
      shape(context, name, 18, 18, 11);
    });
    symbols[symbols.length - 1]();
    return canvas;
  };
  const sayHz = (hz) => hz.toLocaleString("en") + " Hz";
  group("Role", "role", data.roles.map((name, value) => ({ value, text: name + " (" + count(role, value).toLocaleString("en") + ")", symbol: name === "dropped" ? null : symbol(name) })).filter(({ value }) => role.includes(value)));
  group("Why dropped", "rule", data.rules.map(({ name, title }, value) => ({ value, text: title + " (" + name + ", " + count(rule, value).toLocaleString("en") + ")", symbol: symbol("dropped", value) })).filter(({ value }) => rule.includes(value)));
  const rates = data.rates.map((hz, value) => ({ value, text: sayHz(hz) + " (" + count(rate, value).toLocaleString("en") + ")" }));
  if (rates.length && rate.includes(-1)) rates.push({ value: -1, text: "not known (" + count(rate, -1).toLocaleString("en") + ")" });
  group("Sample rate", "rate", rates);
  if (data.labels.length) {
    const per = new Int32Array(data.labels.length);
    data.labelled.forEach((some) => some.forEach((label) => per[label]++));
    const label = document.createElement("label"), select = document.createElement("select"), set = document.createElement("fieldset"), legend = document.createElement("legend");
    legend.textContent = "Label"; label.append(select); set.append(legend, label);
    select.append(new Option("any", -1), ...[...data.labels.keys()].sort((a, b) => labelsLowered[a] < labelsLowered[b] ? -1 : 1).map((i) => new Option(data.labels[i] + " (" + per[i].toLocaleString("en") + ")", i)));
    select.setAttribute("aria-label", "Label");
    select.addEventListener("change", () => { active.label = Number(select.value); apply(); });
    box.append(set);
  }
  function apply() {
    for (let i = 0; i < n; i++) {
      shown[i] = !active.role.has(role[i]) && !(role[i] === DROPPED && active.rule.has(rule[i])) && !active.rate.has(rate[i]) && (active.label < 0 || data.labelled[i].includes(active.label)) ? 1 : 0;
    }
    state(); redraw();
  }
  return box;
}
function state() {
  const visible = shown.reduce((a, b) => a + b, 0);
  $("state").textContent = visible === n ? n.toLocaleString("en") + " clips" : visible.toLocaleString("en") + " of " + n.toLocaleString("en") + " clips shown";
}

/* search */
function search() {
  const text = $("search").value.trim().toLowerCase();
  matches = [];
  if (text) {
    const named = new Set([...labelsLowered.keys()].filter((label) => labelsLowered[label].includes(text)));
    for (let i = 0; i < n; i++) if (lowered[i].includes(text) || named.size && data.labelled[i].some((label) => named.has(label))) matches.push(i);
    matches.sort((a, b) => (lowered[b] === text) - (lowered[a] === text) || a - b);
  }
  list(text ? matches.length.toLocaleString("en") + (matches.length === 1 ? " clip has" : " clips have") + " this in id or label" : "", matches.map((at) => ({ at, small: labelsOf(at) })));
  redraw(false);
}

/* selection */
function select(test, keep) {
  if (!keep) chosen.fill(0);
  for (let i = 0; i < n; i++) if (shown[i] && test(i)) chosen[i] = 1;
  told();
}
function told() {
  numChosen = chosen.reduce((a, b) => a + b, 0);
  const by = data.roles.map((name, value) => [name, [...chosen.keys()].filter((i) => chosen[i] && role[i] === value).length]).filter(([, many]) => many);
  $("selected").textContent = numChosen ? numChosen.toLocaleString("en") + " selected: " + by.map(([name, many]) => many.toLocaleString("en") + " " + name).join(", ") : "Nothing is selected. Draw around clips with the lasso, or hold Shift and drag.";
  $("save").disabled = $("none").disabled = !numChosen;
  redraw(false);
}
function inside(polygon) {
  const px = polygon.map(([x]) => fromX(x)), py = polygon.map(([, y]) => fromY(y)), m = polygon.length;
  const [x0, x1, y0, y1] = [Math.min(...px), Math.max(...px), Math.min(...py), Math.max(...py)];
  return (i) => {
    const x = X[i], y = Y[i];
    if (x < x0 || x > x1 || y < y0 || y > y1) return false;
    let odd = false;
    for (let a = 0, b = m - 1; a < m; b = a++) if ((py[a] > y) !== (py[b] > y) && x < (px[b] - px[a]) * (y - py[a]) / (py[b] - py[a]) + px[a]) odd = !odd;
    return odd;
  };
}
const chosenIds = () => [...chosen.keys()].filter((i) => chosen[i]).map((i) => data.id[i] + "\n").join("");
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([chosenIds()], { type: "text/plain" }));
  link.download = "selected_ids.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/* pointer, touch, wheel, keys */
const fingers = new Map();
let start = null, moved = false;
const at = (event) => { const box = over.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
over.addEventListener("pointerdown", (event) => {
  over.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, at(event));
  moved = fingers.size > 1;
  start = { ...view, from: at(event) };
  if (fingers.size > 1) lasso = null;
  else if (lassoMode || event.shiftKey) lasso = [at(event)];
});
over.addEventListener("pointermove", (event) => {
  const here = at(event);
  if (!fingers.has(event.pointerId)) { if (event.pointerType !== "touch") hover(under(...here), ...here); return; }
  const before = fingers.get(event.pointerId);
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, p]) => p), far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    zoom(far(here) / far(before), other[0], other[1]);
  } else if (lasso) {
    lasso.push(here); moved = true; redraw(false);
  } else if (start && (moved || Math.hypot(here[0] - start.from[0], here[1] - start.from[1]) > 4)) {
    moved = true; hover(-1);
    view.x -= (here[0] - before[0]) / view.scale; view.y += (here[1] - before[1]) / view.scale;
    redraw();
  }
  fingers.set(event.pointerId, here);
});
function released(event) {
  if (!fingers.delete(event.pointerId)) return;
  if (lasso && lasso.length > 2) { const path = lasso; select(inside(path), event.ctrlKey || event.metaKey); }
  else if (!moved && event.type === "pointerup") { const i = under(...at(event)); if (i >= 0) pick(i); }
  lasso = null;
  redraw(false);
}
over.addEventListener("pointerup", released);
over.addEventListener("pointercancel", released);
over.addEventListener("pointerleave", () => hover(-1));
over.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event)); }, { passive: false });
over.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = 60 / view.scale, player = $("player");
  const acts = {
    ArrowLeft: () => { view.x -= by; redraw(); }, ArrowRight: () => { view.x += by; redraw(); },
    ArrowUp: () => { view.y += by; redraw(); }, ArrowDown: () => { view.y -= by; redraw(); },
    "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit, n: () => step(1), p: () => step(-1),
    Enter: () => { player.paused ? player.play().catch(() => {}) : player.pause(); },
    Escape: () => { lasso = null; pick(-1); },
  };
  if (!acts[event.key]) return;
  event.preventDefault(); acts[event.key]();
});
$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && matches.length) { look(matches[0]); pick(matches[0]); } });
$("lasso").addEventListener("click", () => { lassoMode = !lassoMode; $("lasso").setAttribute("aria-pressed", lassoMode); });
$("closer").addEventListener("click", () => zoom(1.5));
$("further").addEventListener("click", () => zoom(1 / 1.5));
$("fit").addEventListener("click", fit);
$("all").addEventListener("click", () => select(() => true, false));
$("none").addEventListener("click", () => { chosen.fill(0); told(); });
$("save").addEventListener("click", save);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); symbols.forEach((draw) => draw()); redraw(); });
new ResizeObserver(resize).observe(over);

readColours();
filters();
state();
resize();
/* for the console, and for tests */
window.atlas = { data, place: (i) => [toX(X[i]), toY(Y[i])], pick, chosenIds, drawPoints, isShown: (i) => shown[i] === 1 };
})();
