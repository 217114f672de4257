// Contrast, gamma and colours: per channel, kept by this browser. The server applies them to the full frames' values.

const LUTS = ["grey", "inverted", "viridis", "magma", "fire", "glow"];
const PLAIN = { auto: true, low: 0, high: 255, gamma: 1, lut: "grey" };
const MOST_CHANNELS = 16;     // remembered; a request carries those of this run only
const GRIP_PX = 14;           // from a mark of the histogram
// Emission colours that the names promise; else in this order, of which the first two make grey where both agree.
const NAMED = [[/dapi|hoechst/i, "#4060ff"], [/fitc|gfp|488/i, "#00ff40"], [/tritc|cy3|rhod|cherry|561/i, "#ff4020"], [/cy5|640|647/i, "#ff30ff"]];
const ORDER = ["#30ff30", "#ff30ff", "#30c8ff", "#ffb030", "#ff5050", "#ffffff"];

const $ = (id) => document.getElementById(id);

let looks = {};               // by channel
let edited = "left";          // the side that the panel changes
let spread = 0.25;        // full colour of a difference, as a share of the contrast's width
let bits = 0;
let histograms = {};          // by channel, as last sent
let held = null;              // the mark that is dragged

export function asked(page) {
  const names = (page.header?.channels ?? [""]).slice(0, MOST_CHANNELS);
  const composite = page.channel === "*";
  return {
    looks: Object.fromEntries(names.map((name) => [name, wire(of(name))])),
    channel: composite || page.channel === "" ? null : page.channel,
    composite,
    spread,
    bits,
    histogram: !$("panel").hidden,
  };
}

function wire(look) {
  const { left, right, shared, colour, on } = look;
  return { left, right, shared, on, colour: [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)) };
}

function of(channel) {
  if (!Object.hasOwn(looks, channel)) {
    const used = Object.keys(looks).filter(Boolean).length;
    const colour = NAMED.find(([name]) => name.test(channel))?.[1] ?? ORDER[used % ORDER.length];
    looks[channel] = { left: { ...PLAIN }, right: { ...PLAIN }, shared: true, colour, on: true };
  }
  return looks[channel];
}

// The channel that the panel changes: the one on the screen.
function current(page) {
  return (page.side("left").meta ?? page.side("right").meta)?.channel ?? "";
}

function editedLook(page) {
  const look = of(current(page));
  return look[look.shared ? "left" : edited];
}

function change(page, changes) {
  Object.assign(editedLook(page), changes);
  keep();
  show(page);
  page.ask();
}

function keep() {
  const names = Object.keys(looks).slice(-MOST_CHANNELS);
  localStorage.setItem("looks", JSON.stringify(Object.fromEntries(names.map((name) => [name, looks[name]]))));
}

export function toggleAuto(page) {
  change(page, { auto: !editedLook(page).auto });
}

export function nextLut(page) {
  const at = LUTS.indexOf(editedLook(page).lut);
  change(page, { lut: LUTS[(at + 1) % LUTS.length] });
}

export function start(page) {
  try {
    looks = JSON.parse(localStorage.getItem("looks")) ?? {};
  } catch {
    looks = {};  // written by another version
  }
  $("auto").addEventListener("change", () => change(page, { auto: $("auto").checked }));
  $("low").addEventListener("input", () => setEnd(page, "low", Number($("low").value)));
  $("high").addEventListener("input", () => setEnd(page, "high", Number($("high").value)));
  $("gamma").addEventListener("input", () => change(page, { gamma: Number($("gamma").value) }));
  $("lut").addEventListener("change", () => change(page, { lut: $("lut").value }));
  $("spread").addEventListener("input", () => { spread = Number($("spread").value); show(page); page.ask(); });
  $("bits").addEventListener("change", () => { bits = Number($("bits").value); page.ask(); });
  $("shared").addEventListener("change", () => {
    const look = of(current(page));
    look.shared = $("shared").checked;
    if (!look.shared) look.right = { ...look.left };
    keep();
    show(page);
    page.ask();
  });
  for (const button of $("edited").children) {
    button.addEventListener("click", () => { edited = button.dataset.side; show(page); });
  }
  $("channel").addEventListener("change", () => { page.channel = $("channel").value; page.ask(); });
  watchHistogram(page);
  page.on("frame", (header) => {
    learn(page, header);
    showChannels(page, header);
    show(page);
  });
  show(page);
}

function learn(page, header) {
  Object.assign(histograms, header.histograms ?? {});
  for (const [name, windows] of Object.entries(header.windows)) {
    const look = of(name);
    for (const side of ["left", "right"]) {
      if (look[side].auto) [look[side].low, look[side].high] = look.shared ? windows.shared : windows[side];
    }
  }
}

function setEnd(page, name, value) {
  if (!Number.isFinite(value)) return;
  const { low, high } = editedLook(page);
  const changes = { auto: false, low, high, [name]: value };
  if (name === "low") changes.high = Math.max(high, value + 1);
  else changes.low = Math.min(low, value - 1);
  change(page, changes);
}

// ------------------------------------------------------------------ the panel

function pick(group, key, value) {
  for (const button of group.children) button.setAttribute("aria-checked", String(button.dataset[key] === value));
}

function fill(input, value) {
  if (document.activeElement !== input) input.value = value;  // what is being typed stays
}

export function show(page) {
  const channel = current(page);
  const look = of(channel);
  const one = editedLook(page);
  $("look_of").textContent = channel;
  $("auto").checked = one.auto;
  $("shared").checked = look.shared;
  $("edited").hidden = look.shared;
  pick($("edited"), "side", edited);
  fill($("low"), Math.round(one.low));
  fill($("high"), Math.round(one.high));
  $("gamma").value = one.gamma;
  $("gamma_value").textContent = one.gamma.toFixed(2);
  $("lut").value = one.lut;
  $("lut").disabled = page.channel === "*";
  $("spread").value = spread;
  $("spread_value").textContent = `${Math.round(spread * 100)} %`;
  for (const element of [$("spread"), $("spread_value"), document.querySelector("label[for=spread]")]) {
    element.hidden = page.mode !== "difference";
  }
  if (!$("panel").hidden) drawHistogram(page, channel, one, look.shared);
}

function showChannels(page, header) {
  const several = header.channels.length > 1;
  const select = $("channel");
  select.hidden = !several;
  const options = [["", "newest channel"], ...header.channels.map((name) => [name, name || "unnamed"]), ["*", "composite"]];
  const key = JSON.stringify(options);
  if (key !== select.dataset.key) {
    select.dataset.key = key;
    select.replaceChildren(...options.map(([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text })));
    $("channels").replaceChildren(...header.channels.map((name) => channelRow(page, name)));
    if (!options.some(([value]) => value === page.channel)) page.channel = "";
    select.value = page.channel;
  }
  $("channels").hidden = !several || page.channel !== "*";
}

function channelRow(page, name) {
  const row = document.createElement("label");
  const on = Object.assign(document.createElement("input"), { type: "checkbox", checked: of(name).on });
  const colour = Object.assign(document.createElement("input"), { type: "color", value: of(name).colour });
  on.addEventListener("change", () => { of(name).on = on.checked; keep(); page.ask(); });
  colour.addEventListener("input", () => { of(name).colour = colour.value; keep(); page.ask(); });
  row.append(on, colour, Object.assign(document.createElement("span"), { textContent: name }));
  return row;
}

// ------------------------------------------------------------------ histogram

let scale = { low: 0, high: 255 };

function drawHistogram(page, channel, look, shared) {
  const canvas = $("histogram");
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const colour = { left: style.getPropertyValue("--quiet"), right: style.getPropertyValue("--accent") };
  const both = histograms[channel] ?? {};
  const sides = ["left", "right"].filter((name) => both[name] && (shared || name === edited));
  if (!held && sides.length) {
    const reach = sides.flatMap((name) => [both[name][0], both[name][1]]);
    const ends = look.auto ? reach : [...reach, look.low, look.high];
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const room = Math.max(1, high - low) * 0.02;
    scale = { low: low - room, high: high + room };
  }
  const x = (value) => (value - scale.low) / (scale.high - scale.low) * width;
  for (const name of sides) {
    const [low, high, counts] = both[name];
    const top = Math.log1p(Math.max(...counts));
    const bin = (high - low) / counts.length;
    context.fillStyle = colour[name];
    context.globalAlpha = name === "left" ? 0.75 : 0.6;
    counts.forEach((count, i) => {
      const tall = top > 0 ? Math.log1p(count) / top * (height - 16) : 0;
      context.fillRect(x(low + i * bin), height - 12 - tall, Math.max(1, x(low + bin) - x(low)), tall);
    });
  }
  context.globalAlpha = 1;
  for (const [value, mark] of [[look.low, "#000"], [look.high, "#fff"]]) {
    const at = Math.min(Math.max(x(value), 1), width - 1);
    context.fillStyle = style.getPropertyValue("--text");
    context.fillRect(at - 0.75, 0, 1.5, height - 10);
    context.fillStyle = mark;
    context.strokeStyle = style.getPropertyValue("--text");
    context.beginPath();
    context.moveTo(at, height - 12);
    context.lineTo(at - 6, height - 1);
    context.lineTo(at + 6, height - 1);
    context.closePath();
    context.fill();
    context.stroke();
  }
}

function watchHistogram(page) {
  const canvas = $("histogram");
  const value = (event) => scale.low + (event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth * (scale.high - scale.low);
  canvas.addEventListener("pointerdown", (event) => {
    const at = event.clientX - canvas.getBoundingClientRect().left;
    const look = editedLook(page);
    const x = (grey) => (grey - scale.low) / (scale.high - scale.low) * canvas.clientWidth;
    const [low, high] = [Math.abs(at - x(look.low)), Math.abs(at - x(look.high))];
    if (Math.min(low, high) > GRIP_PX) return;
    held = low < high || (low === high && at < x(look.low)) ? "low" : "high";
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => { if (held) setEnd(page, held, value(event)); });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { held = null; });
}
