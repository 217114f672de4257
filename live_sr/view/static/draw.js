// Draws the images where they belong, and on them what they are: labels, scale bar, line, pointer, region.
// Canvas 2D: drawing a decoded preview takes a tenth of what WebGL takes without a graphics card, and needs none.

import { askSoon } from "./link.js";
import { region } from "./measure.js";

const MAX_PX = 40;            // CSS pixels that one image pixel may fill
const MARGIN = 0.04;          // of the visible part: asked for beyond its edges, so that moving shows no bare edge
const MIN_CANVAS = 64;        // pixels; smaller ones are not served
const MAX_CANVAS = 8192;
export const LABEL = { left: "low-dose, as acquired", right: "computed image", difference: "computed − acquired" };
const FONT = "600 13px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const FILL = { left: "rgb(20 25 33 / 88%)", right: "rgb(11 90 80 / 92%)", difference: "rgb(92 52 120 / 94%)" };

const all = {};
let drawing = false;

export function start(page) {
  for (const name of ["left", "right", "one"]) {
    const canvas = document.querySelector(`#${name} canvas`);
    all[name] = { name, canvas, context: canvas.getContext("2d", { alpha: false }) };
    new ResizeObserver(() => { page.redraw(); askSoon(page); }).observe(canvas);
  }
}

export function panes() {
  return Object.values(all);
}

// What is on the screen: each pane with the planes that it shows, and which share of its width each has.
function layout(page) {
  switch (page.mode) {
    case "swipe": return [[all.one, [["left", 0, page.swipe], ["right", page.swipe, 1]]]];
    case "blink": return [[all.one, [[page.blinkRight ? "right" : "left", 0, 1]]]];
    case "difference": return [[all.one, [["difference", 0, 1]]]];
    default: return [[all.left, [["left", 0, 1]]], [all.right, [["right", 0, 1]]]];
  }
}

function shownCanvas(page) {
  return page.mode === "side" ? all.left.canvas : all.one.canvas;
}

export function fitZoom(page) {
  const { clientWidth, clientHeight } = shownCanvas(page);
  return Math.max(1e-6, Math.min(clientWidth / page.field[1], clientHeight / page.field[0]));
}

export function clampView(page) {
  const { view, field } = page;
  const least = fitZoom(page);
  const meta = page.side("right").meta;
  const finest = Math.max(1, meta ? meta.scale / meta.step : 1);
  view.zoom = Math.min(Math.max(view.zoom, least), Math.max(least, MAX_PX * finest));
  view.x = Math.min(Math.max(view.x, 0), field[1]);
  view.y = Math.min(Math.max(view.y, 0), field[0]);
}

// The part of the field to ask for, and the pixels that it fills.
export function wanted(page) {
  const planes = page.mode === "difference" ? ["difference"] : ["left", "right"];
  const { view, field } = page;
  const { clientWidth, clientHeight } = shownCanvas(page);
  const ratio = window.devicePixelRatio || 1;
  const pixels = (css) => Math.min(Math.max(Math.ceil(css * ratio), MIN_CANVAS), MAX_CANVAS);
  if (!field || view.fit) return { planes, canvas: [pixels(clientHeight), pixels(clientWidth)] };
  const side = (centre, length, size) => {
    const half = (length / view.zoom) * (0.5 + MARGIN);
    return [Math.max(0, Math.floor(centre - half)), Math.min(size, Math.ceil(centre + half))];
  };
  const [top, bottom] = side(view.y, clientHeight, field[0]);
  const [left, right] = side(view.x, clientWidth, field[1]);
  return {
    planes,
    area: [top, left, bottom, right],
    canvas: [pixels((bottom - top) * view.zoom), pixels((right - left) * view.zoom)],
  };
}

export function redraw(page) {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    for (const [pane, planes] of layout(page)) draw(page, pane, planes);
  });
}

function draw(page, pane, planes) {
  const { canvas, context } = pane;
  const { view, field } = page;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (field) {
    if (view.fit) Object.assign(view, { x: field[1] / 2, y: field[0] / 2, zoom: fitZoom(page) });
    clampView(page);
  }
  let drawn = 0;
  for (const [name, from, to] of planes) {
    const side = page.side(name);
    if (!side.bitmap) continue;
    drawn += 1;
    context.save();
    context.beginPath();
    context.rect(from * canvas.clientWidth, 0, (to - from) * canvas.clientWidth, canvas.clientHeight);
    context.clip();
    drawBitmap(page, canvas, context, side, ratio);
    context.restore();
  }
  if (drawn) {
    drawScaleBar(page, canvas, context);
    drawRegion(page, canvas, context);
    drawPointer(page, canvas, context);
  } else {
    sayWaiting(page, canvas, context, planes[0][0]);
  }
  if (planes.length > 1) drawLine(page, canvas, context);
  if (planes[0][0] === "difference" && drawn) drawColourBar(page, canvas, context);
  drawLabels(page, canvas, context, planes);
}

function drawBitmap(page, canvas, context, side, ratio) {
  const { view } = page;
  const [top, left, bottom, right] = side.area;
  const width = (right - left) * view.zoom;
  const height = (bottom - top) * view.zoom;
  const size = width / side.bitmap.width;  // CSS pixels per image pixel
  // Enlarged pixels stay square, nothing is interpolated between them. What was reduced for this canvas by a
  // whole number and is now a little too small for it is smoothed, as it would be if it were a little too large.
  context.imageSmoothingEnabled = size * ratio < 1 || (side.image.factor > 1 && size * ratio < 2 && !page.mask);
  context.imageSmoothingQuality = "medium";
  const x = canvas.clientWidth / 2 + (left - view.x) * view.zoom;
  const y = canvas.clientHeight / 2 + (top - view.y) * view.zoom;
  context.drawImage(side.bitmap, x, y, width, height);
}

// The part of a canvas that the field covers, in CSS pixels.
function edges(page, canvas) {
  const { clientWidth, clientHeight } = canvas;
  const { view, field } = page;
  if (!field) return { left: 0, top: 0, right: clientWidth, bottom: clientHeight };
  const x = clientWidth / 2 - view.x * view.zoom;
  const y = clientHeight / 2 - view.y * view.zoom;
  return {
    left: Math.max(0, x), top: Math.max(0, y),
    right: Math.min(clientWidth, x + field[1] * view.zoom), bottom: Math.min(clientHeight, y + field[0] * view.zoom),
  };
}

function sayWaiting(page, canvas, context, name) {
  let text = "";
  const note = page.header?.notes?.[name];
  if (note) text = note;
  else if (!page.field) text = name === "right" ? "" : "waiting for the first frame";
  else if (name !== "left" && !page.side("right").meta) text = "waiting for the first super-resolved frame";
  else if (name === "difference" && page.header && !page.header.images.difference) text = "no frame of which both images are here";
  context.font = "15px system-ui, sans-serif";
  context.fillStyle = "#8f9bad";
  context.textAlign = "center";
  context.fillText(text, canvas.clientWidth / 2, canvas.clientHeight / 2);
  context.textAlign = "left";
}

// ------------------------------------------------------------------ what the images are

function labelText(page, name) {
  const meta = page.side("right").meta;
  const model = name !== "left" && meta ? meta.model : "";
  return model ? `${LABEL[name]} · ${model}` : LABEL[name];
}

function drawLabels(page, canvas, context, planes) {
  const edge = edges(page, canvas);
  context.font = FONT;
  context.textBaseline = "middle";
  const described = [];
  for (const [name, from] of planes) {
    const text = labelText(page, name);
    const width = context.measureText(text).width + 18;
    const y = Math.max(0, Math.min(edge.top, canvas.clientHeight - 45)) + 10;
    // In the swipe view each keeps to its edge, so that neither stands on the other's half while there is room.
    const x = from > 0
      ? Math.min(edge.right, canvas.clientWidth) - width - 10
      : Math.max(0, Math.min(edge.left, canvas.clientWidth - width - 20)) + 10;
    if (planes.length > 1) {
      // The computed half is marked at any place of the line; the acquired label gives way to it.
      const line = page.swipe * canvas.clientWidth;
      if (from > 0) drawLabel(context, FILL[name], `${text} ▸`, Math.max(10, Math.min(x - 18, Math.max(line + 10, 0))), y);
      else if (line > x + width + 4) drawLabel(context, FILL[name], text, x, y);
      else drawLabel(context, FILL[name], `◂ ${text}`, x, y + 31);
    } else {
      drawLabel(context, FILL[name], text, x, y);
    }
    const meta = name === "left" ? page.side("left").meta : page.side("right").meta;
    described.push(meta ? `${text}, frame ${meta.seq}` : text);
    canvas.dataset.session = meta?.session ?? "";
  }
  context.textBaseline = "alphabetic";
  canvas.setAttribute("aria-label", described.join(" | "));
}

function drawLabel(context, fill, text, x, y) {
  const width = context.measureText(text).width;
  context.fillStyle = fill;
  context.beginPath();
  context.roundRect(x, y, width + 18, 25, 5);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(text, x + 9, y + 13);
}

function drawLine(page, canvas, context) {
  const x = Math.round(page.swipe * canvas.clientWidth);
  const y = canvas.clientHeight / 2;
  context.fillStyle = "rgb(0 0 0 / 55%)";
  context.fillRect(x - 2, 0, 4, canvas.clientHeight);
  context.fillStyle = "#fff";
  context.fillRect(x - 1, 0, 2, canvas.clientHeight);
  context.beginPath();
  context.roundRect(x - 13, y - 13, 26, 26, 13);
  context.fill();
  context.fillStyle = "#14191f";
  context.beginPath();
  for (const way of [-1, 1]) {
    context.moveTo(x + way * 9, y);
    context.lineTo(x + way * 3, y - 5);
    context.lineTo(x + way * 3, y + 5);
  }
  context.fill();
  canvas.dataset.line = String(x);
}

function drawColourBar(page, canvas, context) {
  const { image } = page.side("difference");
  const edge = edges(page, canvas);
  const width = Math.min(180, canvas.clientWidth / 3);
  const x = Math.max(edge.left, 0) + 20;
  const y = Math.min(edge.bottom, canvas.clientHeight) - 24;
  context.fillStyle = "rgb(0 0 0 / 62%)";
  context.beginPath();
  context.roundRect(x - 10, y - 24, width + 20, 40, 5);
  context.fill();
  const ramp = context.createLinearGradient(x, 0, x + width, 0);
  ramp.addColorStop(0, "rgb(64 160 255)");
  ramp.addColorStop(0.5, "#000");
  ramp.addColorStop(1, "rgb(255 150 40)");
  context.fillStyle = ramp;
  context.fillRect(x, y, width, 8);
  context.font = FONT;
  context.fillStyle = "#fff";
  const text = Number(image.spread.toPrecision(3)).toLocaleString("en");
  context.fillText(`−${text}`, x, y - 6);
  context.textAlign = "center";
  context.fillText("0", x + width / 2, y - 6);
  context.textAlign = "right";
  context.fillText(`+${text}`, x + width, y - 6);
  context.textAlign = "left";
}

// ------------------------------------------------------------------ scale bar

export function scaleBar(unitPerPx, known, room) {
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

function drawScaleBar(page, canvas, context) {
  const edge = edges(page, canvas);
  const size = (page.side("left").meta ?? page.side("right").meta).pixel_size_um;
  const bar = scaleBar((size || 1) / page.view.zoom, Boolean(size), Math.min(320, canvas.clientWidth / 4));
  context.font = FONT;
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

// ------------------------------------------------------------------ pointer and region

function toCanvas(page, canvas, y, x) {
  return [
    (x - page.view.x) * page.view.zoom + canvas.clientWidth / 2,
    (y - page.view.y) * page.view.zoom + canvas.clientHeight / 2,
  ];
}

function drawPointer(page, canvas, context) {
  const { pointer } = page;
  if (!pointer || pointer.canvas === canvas) return;
  const [x, y] = toCanvas(page, canvas, pointer.y, pointer.x);
  for (const [color, width] of [["rgb(0 0 0 / 70%)", 3], ["#ffd84d", 1.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x - 9, y); context.lineTo(x - 3, y); context.moveTo(x + 3, y); context.lineTo(x + 9, y);
    context.moveTo(x, y - 9); context.lineTo(x, y - 3); context.moveTo(x, y + 3); context.lineTo(x, y + 9);
    context.stroke();
  }
}

function drawRegion(page, canvas, context) {
  const chosen = region();
  if (!chosen) return;
  const [left, top] = toCanvas(page, canvas, chosen[0], chosen[1]);
  const [right, bottom] = toCanvas(page, canvas, chosen[2], chosen[3]);
  for (const [color, width] of [["rgb(0 0 0 / 70%)", 3.5], ["#ffd84d", 1.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}
