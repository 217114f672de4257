// Mouse, pen and fingers on the images: zoom, move, the swipe line, a region to measure.

import { askSoon } from "./link.js";
import { clampView, fitZoom, panes } from "./draw.js";
import { measure, setRegion, toolOn } from "./measure.js";

const GRIP_PX = { mouse: 8, pen: 12, touch: 22 };  // from the swipe line, in CSS pixels

export function place(page, canvas, event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: page.view.x + (event.clientX - box.left - box.width / 2) / page.view.zoom,
    y: page.view.y + (event.clientY - box.top - box.height / 2) / page.view.zoom,
  };
}

function changed(page) {
  page.redraw();
  askSoon(page);
}

export function fit(page) {
  page.view.fit = true;
  changed(page);
}

export function zoomBy(page, factor, about) {
  if (!page.field) return;
  const { view } = page;
  const before = view.zoom;
  view.zoom *= factor;
  clampView(page);
  const share = 1 - before / view.zoom;
  view.x += (about.x - view.x) * share;
  view.y += (about.y - view.y) * share;
  view.fit = view.zoom <= fitZoom(page) * 1.0001;
  changed(page);
}

export function moveBy(page, dx, dy) {
  if (!page.field) return;
  page.view.x += dx;
  page.view.y += dy;
  page.view.fit = false;
  clampView(page);
  changed(page);
}

export function setSwipe(page, share) {
  page.swipe = Math.min(Math.max(share, 0.02), 0.98);
  page.redraw();
}

export function start(page) {
  document.getElementById("fit").addEventListener("click", () => fit(page));
  for (const { canvas } of panes()) watch(page, canvas);
}

function watch(page, canvas) {
  const pointers = new Map();  // those that are down, and where
  let doing = null;            // "move", "swipe" or "region"
  let from = null;             // in raw pixels

  const nearLine = (event) => {
    if (page.mode !== "swipe") return false;
    const box = canvas.getBoundingClientRect();
    return Math.abs(event.clientX - box.left - page.swipe * box.width) <= (GRIP_PX[event.pointerType] ?? 8);
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(page, Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) / 400), place(page, canvas, event));
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !page.field) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    from = place(page, canvas, event);
    if (pointers.size > 1) doing = "pinch";
    else if (nearLine(event)) doing = "swipe";
    else if (event.shiftKey || toolOn()) doing = "region";
    else doing = "move";
    canvas.classList.toggle("moving", doing === "move");
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!page.field) return;
    const held = pointers.get(event.pointerId);
    if (!held) {
      canvas.classList.toggle("line", nearLine(event));
    } else if (doing === "pinch") {
      pinch(page, canvas, pointers, event);
    } else if (doing === "swipe") {
      const box = canvas.getBoundingClientRect();
      setSwipe(page, (event.clientX - box.left) / box.width);
    } else if (doing === "region") {
      const to = place(page, canvas, event);
      setRegion(page, [Math.min(from.y, to.y), Math.min(from.x, to.x), Math.max(from.y, to.y), Math.max(from.x, to.x)]);
    } else if (event.clientX !== held.x || event.clientY !== held.y) {
      moveBy(page, (held.x - event.clientX) / page.view.zoom, (held.y - event.clientY) / page.view.zoom);
    }
    if (held) pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    page.pointer = { ...place(page, canvas, event), canvas };
    measure(page);
    page.redraw();
  });

  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      doing = pointers.size === 1 ? "move" : null;
      canvas.classList.remove("moving");
    });
  }
  canvas.addEventListener("pointerleave", () => { page.pointer = null; page.redraw(); });
  canvas.addEventListener("dblclick", () => fit(page));
}

// Two fingers: the place between them stays under them.
function pinch(page, canvas, pointers, event) {
  const spot = () => {
    const [one, two] = [...pointers.values()];
    return { clientX: (one.x + two.x) / 2, clientY: (one.y + two.y) / 2, apart: Math.hypot(one.x - two.x, one.y - two.y) };
  };
  const before = spot();
  const at = place(page, canvas, before);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  const after = spot();
  if (before.apart > 0 && after.apart > 0) zoomBy(page, after.apart / before.apart, at);
  const now = place(page, canvas, after);
  moveBy(page, at.x - now.x, at.y - now.y);
  page.view.fit = page.view.zoom <= fitZoom(page) * 1.0001;
}
