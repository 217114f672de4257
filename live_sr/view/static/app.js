// The live page. Asks for an image when it has drawn the last one; all that arrives is shown as text or pixels.
import * as controls from "./controls.js";
import * as media from "./media.js";

const STALE_MS = 2000;        // an image this old is not live any more
const SILENT_S = 2;           // eight status messages missing
const RETRY_MS = 1000;
const TOAST_MS = 4000;
const MAX_PX = 40;            // CSS pixels that one image pixel may fill
const DEFAULT_LABEL = { left: "low-dose, as acquired", right: "computed image" };

const $ = (id) => document.getElementById(id);

const sides = {};
for (const name of ["left", "right"]) {
  const figure = $(name);
  const canvas = figure.querySelector("canvas");
  sides[name] = {
    name, canvas, context: canvas.getContext("2d", { alpha: false }),
    what: figure.querySelector(".what"), age: figure.querySelector(".age"),
    bitmap: null, meta: null, capturedAt: 0,
  };
}

let socket = null;
let connected = false;
let report = null;            // the last status message
let reportAt = 0;
let paused = false;
let view = { x: 0, y: 0, zoom: 1, fit: true };  // centre in raw pixels, CSS pixels per raw pixel
let field = null;             // [Y, X] of the raw frame
let pointer = null;           // in raw pixels, and the side it is over
let contrast = { auto: true, low: 0, high: 255 };
let reach = null;             // lowest and highest grey value seen: the sliders' ends
let lastRaw = null;           // {session, seq, at}: when frames are captured
let intervalMs = 0;           // between two frames of a slow scan
let drawing = false;
let at = null;                // index of the earlier frame that is looked at; null: the newest
let lookedBack = null;        // the index that what is shown was looked up by
const listeners = { status: [], frame: [] };

// ------------------------------------------------------------------ talking to the server

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { connected = true; ask(); };
  socket.onclose = () => { connected = false; showState(); setTimeout(connect, RETRY_MS); };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") {
      const said = JSON.parse(event.data);
      if (said.missing) {
        page.say("that frame is not stored yet", "warn");
        return;
      }
      report = said;
      reportAt = performance.now();
      showState();
      tell("status", report);
    } else {
      receive(event.data);
    }
  };
}

// A request replaces one that still waits; `extra` fields belong to this request only.
function ask(extra = {}) {
  if (!connected || socket.readyState !== WebSocket.OPEN) return;
  const again = paused && JSON.stringify(at) === JSON.stringify(lookedBack);
  socket.send(JSON.stringify({ ...contrast, exact: paused, again, at, ...extra }));
}

function tell(what, content) {
  for (const listener of listeners[what]) listener(content);
}

async function receive(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const now = performance.now();
  let offset = 4 + length;
  try {
    const bitmaps = {};
    for (const name of ["left", "right"]) {
      const meta = header[name];
      if (!meta || meta.same) continue;
      const image = new Blob([new Uint8Array(buffer, offset, meta.bytes)], { type: meta.type });
      offset += meta.bytes;
      bitmaps[name] = createImageBitmap(image);
    }
    for (const name of ["left", "right"]) {
      const side = sides[name];
      const bitmap = bitmaps[name] ? await bitmaps[name] : null;
      if (bitmap || !header[name]) {
        side.bitmap?.close();
        side.bitmap = bitmap;
      }
      side.meta = header[name];
      if (side.meta) side.capturedAt = now - side.meta.age_ms;
    }
    lookedBack = header.at;
    learn(header);
    redraw();
    tell("frame", header);
  } finally {
    if (!paused) ask();
  }
}

function learn(header) {
  const meta = header.left;
  if (!meta) return;
  if (!field || field[0] !== meta.field[0] || field[1] !== meta.field[1]) {
    field = meta.field;
    view.fit = true;
  }
  const at = sides.left.capturedAt;
  if (lastRaw && lastRaw.session === meta.session && meta.seq > lastRaw.seq) {
    intervalMs = (at - lastRaw.at) / (meta.seq - lastRaw.seq);
  }
  if (!lastRaw || lastRaw.session !== meta.session || lastRaw.seq !== meta.seq) {
    if (lastRaw && lastRaw.session !== meta.session) { reach = null; intervalMs = 0; }
    lastRaw = { session: meta.session, seq: meta.seq, at };
  }
  reach = reach
    ? [Math.min(reach[0], header.range[0]), Math.max(reach[1], header.range[1])]
    : [...header.range];
  if (contrast.auto) [contrast.low, contrast.high] = header.window;
  showContrast();
  showFrame();
}

// ------------------------------------------------------------------ drawing

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    for (const name of ["left", "right"]) draw(sides[name]);
  });
}

function fitZoom() {
  const { clientWidth, clientHeight } = sides.left.canvas;
  return Math.min(clientWidth / field[1], clientHeight / field[0]);
}

function clampView() {
  const least = fitZoom();
  const finest = Math.max(1, sides.right.meta ? sides.right.meta.scale / sides.right.meta.step : 1);
  view.zoom = Math.min(Math.max(view.zoom, least), Math.max(least, MAX_PX * finest));
  view.x = Math.min(Math.max(view.x, 0), field[1]);
  view.y = Math.min(Math.max(view.y, 0), field[0]);
}

function draw(side) {
  const { canvas, context, bitmap, meta } = side;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (field) {
    if (view.fit) Object.assign(view, { x: field[1] / 2, y: field[0] / 2, zoom: fitZoom() });
    clampView();
  }
  if (bitmap && meta) {
    const size = view.zoom * meta.step / meta.scale;  // CSS pixels per image pixel
    const left = canvas.clientWidth / 2 - view.x * view.zoom;
    const top = canvas.clientHeight / 2 - view.y * view.zoom;
    context.imageSmoothingEnabled = size * ratio < 1;  // enlarged pixels stay square, nothing is interpolated
    context.imageSmoothingQuality = "medium";
    context.drawImage(bitmap, left, top, bitmap.width * size, bitmap.height * size);
    drawScaleBar(side, edges(canvas));
    drawPointer(side);
  } else if (field) {
    say(context, canvas, "waiting for the first super-resolved frame");
  } else if (side.name === "left") {
    say(context, canvas, "waiting for the first frame");
  }
  drawLabel(side);
}

// The part of a canvas that the field covers, in CSS pixels.
function edges(canvas) {
  const { clientWidth, clientHeight } = canvas;
  if (!field) return { left: 0, top: 0, right: clientWidth, bottom: clientHeight };
  const x = clientWidth / 2 - view.x * view.zoom;
  const y = clientHeight / 2 - view.y * view.zoom;
  return {
    left: Math.max(0, x), top: Math.max(0, y),
    right: Math.min(clientWidth, x + field[1] * view.zoom), bottom: Math.min(clientHeight, y + field[0] * view.zoom),
  };
}

function say(context, canvas, text) {
  context.font = "15px system-ui, sans-serif";
  context.fillStyle = "#8f9bad";
  context.textAlign = "center";
  context.fillText(text, canvas.clientWidth / 2, canvas.clientHeight / 2);
  context.textAlign = "left";
}

function labelText(side) {
  const model = side.name === "right" && side.meta ? side.meta.model : "";
  return model ? `${DEFAULT_LABEL.right} · ${model}` : DEFAULT_LABEL[side.name];
}

function drawLabel(side) {
  const { context, canvas } = side;
  const text = labelText(side);
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  const width = context.measureText(text).width;
  context.fillStyle = side.name === "right" ? "rgb(11 90 80 / 92%)" : "rgb(20 25 33 / 88%)";
  context.beginPath();
  const edge = edges(canvas);
  const x = Math.max(0, Math.min(edge.left, canvas.clientWidth - width - 38)) + 10;
  const y = Math.max(0, Math.min(edge.top, canvas.clientHeight - 45)) + 10;
  context.roundRect(x, y, width + 18, 25, 5);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(text, x + 9, y + 13);
  context.textBaseline = "alphabetic";
  canvas.setAttribute("aria-label", side.meta ? `${text}, frame ${side.meta.seq}` : text);
  canvas.dataset.session = side.meta?.session ?? "";
}

function scaleBar(unitPerPx, known, room) {
  const most = room * unitPerPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const value = power * [5, 2, 1].find((step) => step === 1 || step * power <= most * (1 + 1e-9));
  const text = (number) => String(Number(number.toPrecision(6)));
  let label = `${text(value)} px`;
  if (known && value >= 1000) label = `${text(value / 1000)} mm`;
  else if (known && value >= 1) label = `${text(value)} µm`;
  else if (known) label = `${text(value * 1000)} nm`;
  return { length: value / unitPerPx, label };
}

function drawScaleBar(side, edge) {
  const { context, canvas, meta } = side;
  const size = meta.pixel_size_um;
  const bar = scaleBar((size || 1) / view.zoom, Boolean(size), canvas.clientWidth / 4);
  context.font = "600 13px system-ui, sans-serif";
  const wide = Math.max(bar.length, context.measureText(bar.label).width);
  const right = Math.max(edge.right, wide + 30) - 20;
  const bottom = Math.max(edge.bottom, 60) - 18;
  const middle = right - wide / 2;
  context.fillStyle = "rgb(0 0 0 / 62%)";
  context.beginPath();
  context.roundRect(right - wide - 10, bottom - 30, wide + 20, 40, 5);
  context.fill();
  context.fillStyle = "#fff";
  context.textAlign = "center";
  context.fillText(bar.label, middle, bottom - 12);
  context.textAlign = "left";
  context.fillRect(middle - bar.length / 2, bottom - 4, bar.length, 4);
  canvas.dataset.scaleBar = `${bar.label} = ${bar.length.toFixed(2)}`;
}

function drawPointer(side) {
  if (!pointer || pointer.side === side.name) return;
  const { context, canvas } = side;
  const x = (pointer.x - view.x) * view.zoom + canvas.clientWidth / 2;
  const y = (pointer.y - view.y) * view.zoom + canvas.clientHeight / 2;
  for (const [color, width] of [["rgb(0 0 0 / 70%)", 3], ["#ffd84d", 1.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x - 9, y); context.lineTo(x - 3, y); context.moveTo(x + 3, y); context.lineTo(x + 9, y);
    context.moveTo(x, y - 9); context.lineTo(x, y - 3); context.moveTo(x, y + 3); context.lineTo(x, y + 9);
    context.stroke();
  }
}

// ------------------------------------------------------------------ counters, state, alarms

const LONG = { t: "t", z: "z", c: "c", p: "p", g: "grid" };

function showFrame() {
  showAges();
  const meta = sides.left.meta;
  const index = Object.entries(meta.index).map(([axis, at]) => `${LONG[axis] ?? axis} ${at}`).join("  ");
  $("position").textContent = [meta.channel, index, `frame ${meta.seq}`].filter(Boolean).join("  ·  ");
  for (const side of Object.values(sides)) {
    const m = side.meta;
    if (!m) { side.what.textContent = ""; continue; }
    const parts = [`frame ${m.seq}`, `${m.shape[1]} × ${m.shape[0]}`];
    if (m.pixel_size_um) parts.push(`${Number((m.pixel_size_um / m.scale * 1000).toPrecision(3))} nm/px`);
    if (m.step > 1) parts.push(`shown 1 : ${m.step}`);
    if (side.name === "right" && m.deferred) parts.push("deferred");
    if (m.type === "image/png") parts.push("exact pixels");
    side.what.textContent = parts.join("  ·  ");
  }
}

function duration(ms) {
  if (ms < 10_000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  return `${Math.floor(ms / 60_000)} min`;
}

function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function showAges() {
  const acquiring = report?.status?.state === "acquiring";
  const limit = Math.max(STALE_MS, 3 * intervalMs);  // a slow scan's image is not stale before the next is due
  for (const side of Object.values(sides)) {
    if (!side.meta) { side.age.textContent = ""; continue; }
    const ms = performance.now() - side.capturedAt;
    side.age.textContent = `${duration(ms)} old`;
    side.age.classList.toggle("stale", acquiring && !paused && ms > limit);
  }
}

function silentFor() {
  if (!report || report.feed.silent_s === null) return null;
  return report.feed.silent_s + (performance.now() - reportAt) / 1000;
}

function alarms(status, silent) {
  if (!connected) return ["This page has lost contact with live-sr view: the picture is old. Start it again."];
  if (report?.feed.failed) return ["live-sr view has failed: the picture is old. Start it again; its log says why."];
  if (!status) return [];
  const running = status.state === "acquiring" || status.state === "draining";
  const found = [...status.alarms];
  if (running && silent > SILENT_S) {
    found.push(`No word from the acquisition for ${Math.round(silent)} s: the picture is old. Look at the acquisition PC.`);
  } else if (running && ["away", "connecting", "stopped"].includes(status.server.state)) {
    found.push("Super-resolution server away: raw is being stored, frames will be finished later.");
  } else if (running && status.server.state === "refused") {
    found.push(`Super-resolution server refused: ${status.server.detail}`);
  }
  return found;
}

function chip(id, text, kind, title = "") {
  const element = $(id);
  element.textContent = text;
  element.className = `chip ${kind}`;
  element.title = title;
}

function showState() {
  const status = report?.status;
  const silent = silentFor();
  const quiet = silent === null || silent > SILENT_S;
  if (!connected) chip("run", "page disconnected", "bad");
  else if (!status) chip("run", "waiting for an acquisition", "", report?.feed.address ?? "");
  else if (quiet && status.state !== "acquiring" && status.state !== "draining") {
    chip("run", `${status.state}, acquisition closed`, "", status.session);
  } else {
    const kind = quiet ? "bad" : { acquiring: "good", draining: "warn", finished: "good" }[status.state] ?? "";
    chip("run", status.state, kind, status.session);
  }
  const server = status?.server;
  if (server?.state) {
    const kind = { ready: "good", warming: "warn", connecting: "warn" }[server.state] ?? "bad";
    const parts = [`server ${server.state}`, server.model, [server.device, server.precision].filter(Boolean).join(" ")];
    chip("server", parts.filter(Boolean).join(" · "), kind, server.detail);
  } else {
    chip("server", "", "");
  }
  const banner = $("banner");
  const texts = alarms(status, silent ?? 0);
  if (texts.join("\n") !== banner.dataset.texts) {
    banner.dataset.texts = texts.join("\n");
    banner.replaceChildren(...texts.map((text) => {
      const line = document.createElement("p");
      line.textContent = text;
      return line;
    }));
    banner.hidden = texts.length === 0;
    redraw();  // the canvases have another height now
  }
  if (status) showCounts(status);
  showAges();
}

function showCounts(status) {
  for (const tile of $("ledger").children) {
    const name = tile.dataset.count;
    const value = status.counts[name];
    tile.querySelector("dd").textContent = value === undefined ? "–" : value.toLocaleString("en");
    tile.className = "";
    if (name === "failed" && value > 0) tile.className = "bad";
    if (name === "deferred" && value > 0) tile.className = "warn";
    if (name === "queued" && status.queue !== "ok") tile.className = status.queue === "full" ? "bad" : "warn";
  }
  $("raw_fps").textContent = `${number(status.raw_fps, 1)} fps`;
  $("sr_fps").textContent = `${number(status.sr_fps, 1)} fps`;
  const { p50, p95, p99 } = status.latency_ms;
  $("latency").textContent = p50 == null ? "–" : `${number(p50)} / ${number(p95)} / ${number(p99)} ms`;
}

// ------------------------------------------------------------------ controls

function setPaused(on) {
  paused = on;
  $("pause").textContent = on ? "Resume" : "Pause";
  $("pause").setAttribute("aria-pressed", String(on));
  ask();
}

function setContrast(changes) {
  Object.assign(contrast, changes);
  showContrast();
  ask();
}

function showContrast() {
  $("auto").checked = contrast.auto;
  for (const name of ["low", "high"]) {
    const slider = $(name);
    if (reach) {
      slider.min = Math.floor(reach[0]);
      slider.max = Math.ceil(Math.max(reach[1], reach[0] + 1));
    }
    slider.value = contrast[name];
    $(`${name}_value`).textContent = Math.round(contrast[name]);
  }
}

function slide(name) {
  const changes = { auto: false, low: contrast.low, high: contrast.high };
  changes[name] = Number($(name).value);
  if (name === "low") changes.high = Math.max(changes.high, changes.low + 1);
  else changes.low = Math.min(changes.low, changes.high - 1);
  setContrast(changes);
}

function fit() {
  view.fit = true;
  redraw();
}

function place(side, event) {
  const box = side.canvas.getBoundingClientRect();
  return {
    x: view.x + (event.clientX - box.left - box.width / 2) / view.zoom,
    y: view.y + (event.clientY - box.top - box.height / 2) / view.zoom,
  };
}

function zoomBy(factor, about) {
  if (!field) return;
  const before = view.zoom;
  view.zoom *= factor;
  clampView();
  const share = 1 - before / view.zoom;
  view.x += (about.x - view.x) * share;
  view.y += (about.y - view.y) * share;
  view.fit = view.zoom <= fitZoom() * 1.0001;
  redraw();
}

for (const side of Object.values(sides)) {
  const { canvas } = side;
  let held = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) / 400), place(side, event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !field) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("moving");
    held = place(side, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!field) return;
    const at = place(side, event);
    if (held) {
      view.x += held.x - at.x;
      view.y += held.y - at.y;
      view.fit = view.fit && Math.hypot(held.x - at.x, held.y - at.y) < 1e-6;
      clampView();
      held = view.fit ? held : place(side, event);
    }
    pointer = { ...place(side, event), side: side.name };
    redraw();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => { held = null; canvas.classList.remove("moving"); });
  }
  canvas.addEventListener("pointerleave", () => { pointer = null; redraw(); });
  canvas.addEventListener("dblclick", fit);
}

$("pause").addEventListener("click", () => setPaused(!paused));
$("fit").addEventListener("click", fit);
$("ask").addEventListener("click", () => $("help").showModal());
$("auto").addEventListener("change", () => setContrast({ auto: $("auto").checked }));
$("low").addEventListener("input", () => slide("low"));
$("high").addEventListener("input", () => slide("high"));

// A button clicked with the mouse must not catch the next space, which means pause.
document.addEventListener("click", (event) => { if (event.detail > 0) document.activeElement?.blur(); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === " " && event.target.closest("button, [type=checkbox]")) return;
  const keys = {
    " ": () => setPaused(!paused),
    f: fit,
    c: () => setContrast({ auto: !contrast.auto }),
    "+": () => zoomBy(1.25, pointer ?? view),
    "=": () => zoomBy(1.25, pointer ?? view),
    "-": () => zoomBy(0.8, pointer ?? view),
    "?": () => $("help").showModal(),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

// ------------------------------------------------------------------ what the other parts build on

const page = {
  token: null,                          // sent with each request when there is one
  view,                                 // x, y: centre in raw pixels; zoom: CSS pixels per raw pixel
  get at() { return at; },
  get report() { return report; },
  on(what, listener) { listeners[what].push(listener); },
  ask,
  // Shows the frame at an index such as {t: 3, c: 0}; null shows the newest again.
  lookBack(index) { at = index; ask(); },
  side(name) { return sides[name]; },
  say(text, kind = "") {
    const toast = document.createElement("p");
    toast.textContent = text;
    toast.className = kind;
    $("toasts").append(toast);
    setTimeout(() => toast.remove(), TOAST_MS);
  },
  request(path, options = {}) {
    const headers = new Headers(options.headers);
    if (page.token) headers.set("Authorization", `Bearer ${page.token}`);
    return fetch(path, { ...options, headers });
  },
};

function showPanel(open) {
  $("panel").hidden = !open;
  $("panel_toggle").setAttribute("aria-expanded", String(open));
  localStorage.setItem("panel", open ? "open" : "closed");
}

$("panel_toggle").addEventListener("click", () => showPanel($("panel").hidden));
showPanel(localStorage.getItem("panel") === "open");
media.start(page);
controls.start(page);

new ResizeObserver(redraw).observe(sides.left.canvas);
setInterval(() => { showAges(); showState(); }, 100);
redraw();
connect();
