// The keyboard. Typing in a field is typing.

import { fit, moveBy, setSwipe, zoomBy } from "./gestures.js";
import { nextLut, toggleAuto } from "./look.js";
import { setTool, toolOn } from "./measure.js";

const STEP_PX = 60;           // CSS pixels that an arrow key moves

const $ = (id) => document.getElementById(id);

export function start(page) {
  $("ask").addEventListener("click", () => $("help").showModal());
  // A button clicked with the mouse must not catch the next space, which means pause.
  document.addEventListener("click", (event) => {
    if (event.detail > 0 && document.activeElement?.matches("button, [type=checkbox]")) document.activeElement.blur();
  });
  const about = () => page.pointer ?? page.view;
  const move = (x, y) => (event) => event.shiftKey && moveBy(page, x * STEP_PX / page.view.zoom, y * STEP_PX / page.view.zoom);
  const keys = {
    " ": () => page.setPaused(!page.paused),
    1: () => page.setMode("side"),
    2: () => page.setMode("swipe"),
    3: () => page.setMode("blink"),
    4: () => page.setMode("difference"),
    ",": () => setSwipe(page, page.swipe - 0.02),
    ".": () => setSwipe(page, page.swipe + 0.02),
    f: () => fit(page),
    c: () => toggleAuto(page),
    l: () => nextLut(page),
    m: () => page.setMask(!page.mask),
    r: () => setTool(page, !toolOn()),
    v: page.fullScreen,
    p: () => page.setPanel($("panel").hidden),
    "+": () => zoomBy(page, 1.25, about()),
    "=": () => zoomBy(page, 1.25, about()),
    "-": () => zoomBy(page, 0.8, about()),
    "?": () => $("help").showModal(),
    ArrowLeft: move(-1, 0),
    ArrowRight: move(1, 0),
    ArrowUp: move(0, -1),
    ArrowDown: move(0, 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    if (event.key === " " && event.target.closest("button, [type=checkbox]")) return;
    const act = keys[event.key];
    if (!act || (event.key.startsWith("Arrow") && !event.shiftKey)) return;
    event.preventDefault();
    act(event);
  });
}
