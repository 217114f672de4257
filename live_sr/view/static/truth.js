// What is known about the picture and the run: age, rates, the ledger, the server, and in red what is wrong.

const STALE_MS = 2000;        // an image this old is not live any more
const SILENT_S = 2;           // eight status messages missing
const RATE_MS = 2000;         // over which the frames shown here are counted
const LONG = { t: "t", z: "z", c: "c", p: "p", g: "grid" };
const KIND = { sequence: "", live: "live mode", snap: "snap" };

const $ = (id) => document.getElementById(id);

let seen = [];                // when new frames came
let lastRaw = null;           // {session, seq, at}: when frames are captured
let intervalMs = 0;           // between two frames of a slow scan

export function start(page) {
  page.on("status", () => showState(page));
  page.on("frame", () => { learn(page); showFrame(page); });
  setInterval(() => { showState(page); showAges(page); }, 100);
}

function learn(page) {
  const meta = page.side("left").meta;
  const key = ["left", "right"].map((name) => page.side(name).meta?.seq).join();
  if (key !== learn.key) seen.push(performance.now());
  learn.key = key;
  if (!meta || page.at) return;
  const at = page.side("left").capturedAt;
  if (lastRaw && lastRaw.session === meta.session && meta.seq > lastRaw.seq) {
    intervalMs = (at - lastRaw.at) / (meta.seq - lastRaw.seq);
  }
  if (!lastRaw || lastRaw.session !== meta.session || lastRaw.seq !== meta.seq) {
    if (lastRaw && lastRaw.session !== meta.session) intervalMs = 0;
    lastRaw = { session: meta.session, seq: meta.seq, at };
  }
}

export function shownPerS() {
  const now = performance.now();
  seen = seen.filter((at) => now - at < RATE_MS);
  return seen.length / (RATE_MS / 1000);
}

// ------------------------------------------------------------------ the frame

function showFrame(page) {
  showAges(page);
  const meta = page.side("left").meta ?? page.side("right").meta;
  const index = Object.entries(meta.index).map(([axis, at]) => `${LONG[axis] ?? axis} ${at}`).join("  ");
  const parts = [
    page.header.at ? "earlier frame" : "", KIND[meta.kind] ?? "", meta.channel, index, `frame ${meta.seq}`,
    stage(meta.stage_um), meta.exposure_ms === null ? "" : `${Number(meta.exposure_ms.toPrecision(4))} ms`,
  ];
  $("position").textContent = parts.filter(Boolean).join("  ·  ");
  $("position").title = $("position").textContent;
  for (const name of ["left", "right"]) {
    const { meta: m, image } = page.side(name);
    const text = m ? what(name, m, image) : "";
    for (const element of captions(name, ".what")) element.textContent = text;
    for (const element of captions(name, ".marked")) {
      element.textContent = image && page.mask ? marks(image) : "";
      element.classList.toggle("some", Boolean(image?.high || image?.low));
    }
  }
}

function stage(um) {
  if (!um || um.every((at) => at === null)) return "";
  return `${["x", "y", "z"].map((axis, i) => um[i] === null ? "" : `${axis} ${um[i].toFixed(2).replace("-", "−")}`).filter(Boolean).join("  ")} µm`;
}

function what(name, meta, image) {
  const parts = [`frame ${meta.seq}`, `${meta.shape[1]} × ${meta.shape[0]}`];
  if (meta.pixel_size_um) parts.push(`${Number((meta.pixel_size_um / meta.scale * 1000).toPrecision(3))} nm/px`);
  const step = meta.step * (image?.factor ?? 1);
  if (step > 1) parts.push(`shown 1 : ${step}`);
  if (name === "right" && meta.deferred) parts.push("deferred");
  if (image?.type === "image/png" && image.factor === 1) parts.push("exact pixels");
  return parts.join("  ·  ");
}

function marks(image) {
  return `${image.high.toLocaleString("en")} saturated  ·  ${image.low.toLocaleString("en")} empty`;
}

// The caption of a side in its own figure, and in the one that both share.
function captions(name, selector) {
  const shared = document.querySelectorAll(`#one ${selector}`);
  return [document.querySelector(`#${name} ${selector}`), shared[name === "left" ? 0 : 1]];
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.floor(ms / 60_000)} min`;
  return `${Math.floor(ms / 3_600_000)} h`;
}

function limitMs() {
  return Math.max(STALE_MS, 3 * intervalMs);  // a slow scan's image is not stale before the next is due
}

function showAges(page) {
  const acquiring = page.report?.status?.state === "acquiring";
  for (const name of ["left", "right"]) {
    const side = page.side(name);
    const ms = performance.now() - side.capturedAt;
    for (const element of captions(name, ".age")) {
      element.textContent = side.meta ? `${duration(ms)} old` : "";
      element.classList.toggle("stale", Boolean(side.meta) && acquiring && !page.paused && !page.at && ms > limitMs());
    }
  }
}

// ------------------------------------------------------------------ the run

function silentFor(page) {
  const { report } = page;
  if (!report || report.feed.silent_s === null) return null;
  return report.feed.silent_s + (performance.now() - report.at) / 1000;
}

function alarms(page, status, silent) {
  if (!page.connected) return ["This page has lost contact with live-sr view: the picture is old. Start it again."];
  if (page.report?.feed.failed) return ["live-sr view has failed: the picture is old. Start it again; its log says why."];
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
  const behind = staleFor(page, status);
  if (behind !== null && !(silent > SILENT_S)) {
    found.push(`The super-resolved image is ${duration(behind)} old while raw frames go on: judge by the acquired image.`);
  }
  return found;
}

// How old the super-resolved image is when raw frames have left it behind; null while it keeps up.
function staleFor(page, status) {
  const { meta: left, capturedAt } = page.side("left");
  const right = page.side("right");
  if (status.state !== "acquiring" || !status.control.sr_on || page.paused || page.at || !left || !right.meta) return null;
  if (left.seq <= right.meta.seq || capturedAt - right.capturedAt < limitMs()) return null;
  return performance.now() - right.capturedAt;
}

function chip(id, text, kind, title = "") {
  const element = $(id);
  element.textContent = text;
  element.className = `chip ${kind}`;
  element.title = title;
}

function showState(page) {
  const status = page.report?.status;
  const silent = silentFor(page);
  const quiet = silent === null || silent > SILENT_S;
  if (!page.connected) chip("run", "page disconnected", "bad");
  else if (!status) chip("run", "waiting for an acquisition", "", page.report?.feed.address ?? "");
  else if (quiet && status.state !== "acquiring" && status.state !== "draining") {
    chip("run", `${status.state}, acquisition closed`, "", status.session);
  } else {
    const { queued = 0, in_flight = 0, deferred = 0 } = status.counts;
    const done = status.state === "draining" && queued + in_flight + deferred === 0;  // the session is only open
    const now = done ? "idle" : status.state;
    const kind = quiet ? "bad" : { acquiring: "good", draining: "warn", finished: "good" }[now] ?? "";
    const state = status.sequence.state === "paused" ? "sequence paused" : now;
    chip("run", state, kind, status.session);
  }
  const server = status?.server;
  if (server?.state) {
    const kind = { ready: "good", warming: "warn", connecting: "warn" }[server.state] ?? "bad";
    const parts = [`server ${server.state}`, server.model, [server.device, server.precision].filter(Boolean).join(" ")];
    const off = status.control.sr_on ? "" : "SR off";
    chip("server", [off, ...parts].filter(Boolean).join(" · "), off ? "warn" : kind, server.detail);
  } else {
    chip("server", "", "");
  }
  showAlarms(page, alarms(page, status, silent ?? 0));
  if (status) showCounts(status);
  $("page_fps").textContent = `${shownPerS().toFixed(1)} fps`;
}

function showAlarms(page, texts) {
  const banner = $("banner");
  if (texts.join("\n") === banner.dataset.texts) return;
  banner.dataset.texts = texts.join("\n");
  banner.replaceChildren(...texts.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
  banner.hidden = texts.length === 0;
  page.redraw();  // the canvases have another height now
}

function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

const QUEUE = { ok: "queued", high: "queued ≥ 75 %", full: "queue full" };

function showCounts(status) {
  for (const tile of $("ledger").children) {
    const name = tile.dataset.count;
    const value = status.counts[name];
    tile.querySelector("dd").textContent = value === undefined ? "–" : value.toLocaleString("en");
    tile.className = "";
    if (name === "failed" && value > 0) tile.className = "bad";
    if (name === "deferred" && value > 0) tile.className = "warn";
    if (name !== "queued") continue;
    tile.querySelector("dt").textContent = QUEUE[status.queue];
    if (status.queue !== "ok") tile.className = status.queue === "full" ? "bad" : "warn";
  }
  $("raw_fps").textContent = `${number(status.raw_fps, 1)} fps`;
  $("sr_fps").textContent = `${number(status.sr_fps, 1)} fps`;
  const { p50, p95, p99 } = status.latency_ms;
  $("latency").textContent = p50 == null ? "–" : `${number(p50)} / ${number(p95)} / ${number(p99)} ms`;
}
