// Grey values of the full frames: under the pointer, and of a region. The server reads them; previews have 8 bits.

import { send } from "./link.js";

const PATIENCE_MS = 1000;     // an answer that is not here by then was lost with the connection

const $ = (id) => document.getElementById(id);

let chosen = null;            // [top, left, bottom, right] in raw pixels
let tool = false;
let number = 0;
let sentAt = null;            // when the request was sent that is not answered yet
let again = false;            // something changed meanwhile

export function region() {
  return chosen;
}

export function toolOn() {
  return tool;
}

export function setTool(page, on) {
  tool = on;
  $("roi").setAttribute("aria-pressed", String(on));
}

export function setRegion(page, area) {
  const [height, width] = page.field;
  chosen = area && [
    Math.max(0, Math.floor(area[0])), Math.max(0, Math.floor(area[1])),
    Math.min(height, Math.ceil(area[2])), Math.min(width, Math.ceil(area[3])),
  ];
  if (chosen && (chosen[2] <= chosen[0] || chosen[3] <= chosen[1])) chosen = null;
  $("measured").hidden = !chosen;
  if (chosen && $("panel").hidden) page.setPanel(true);
  measure(page);
  page.redraw();
}

// Asks for what has changed; while an answer is awaited, afterwards.
export function measure(page) {
  if (sentAt !== null && performance.now() - sentAt < PATIENCE_MS) {
    again = true;
    return;
  }
  again = false;
  const { pointer } = page;
  if (!pointer && !chosen) return;
  number += 1;
  sentAt = performance.now();
  send({ type: "measure", id: number, point: pointer ? [pointer.y, pointer.x] : null, area: chosen });
}

export function start(page) {
  $("roi").addEventListener("click", () => setTool(page, !tool));
  $("roi_clear").addEventListener("click", () => setRegion(page, null));
  for (const canvas of document.querySelectorAll("main canvas")) {
    canvas.addEventListener("pointerleave", () => { $("readout").textContent = ""; });
  }
  page.on("frame", () => measure(page));
  page.on("measured", (answer) => {
    sentAt = null;
    show(page, answer);
    if (again) measure(page);
  });
}

function show(page, { point, area }) {
  const { pointer } = page;
  if (point && pointer) {
    const at = `x ${Math.floor(pointer.x)}  y ${Math.floor(pointer.y)}`;
    const values = point.filter((one) => one.left !== null || one.right !== null).map((one) => {
      const name = point.length > 1 ? `${one.channel} ` : "";
      return `${name}raw ${one.left ?? "–"}  SR ${one.right ?? "–"}`;
    });
    $("readout").textContent = values.length ? [at, ...values].join("  ·  ") : "";
  }
  if (area && chosen) showRegion(page, area);
}

function showRegion(page, channels) {
  const [top, left, bottom, right] = chosen;
  const size = (page.side("left").meta ?? page.side("right").meta)?.pixel_size_um;
  const microns = size ? `, ${((right - left) * size).toPrecision(3)} × ${((bottom - top) * size).toPrecision(3)} µm` : "";
  $("roi_size").textContent = `${right - left} × ${bottom - top} raw pixels at x ${left}, y ${top}${microns}`;
  const rows = [];
  for (const channel of channels) {
    for (const [name, values] of [["raw", channel.left], ["SR", channel.right]]) {
      if (!values) continue;
      const row = document.createElement("tr");
      row.dataset.of = name;
      const label = channels.length > 1 ? `${channel.channel} ${name}` : name;
      for (const text of [label, values.mean.toFixed(1), values.std.toFixed(1), String(values.min), String(values.max)]) {
        row.append(Object.assign(document.createElement(row.children.length ? "td" : "th"), { textContent: text }));
      }
      rows.push(row);
    }
  }
  $("measured").querySelector("tbody").replaceChildren(...rows);
}
