// The live page: builds its parts and hands each the page that they share. All that arrives is shown as text or pixels.

import * as controls from "./controls.js";
import * as draw from "./draw.js";
import * as gestures from "./gestures.js";
import * as keys from "./keys.js";
import * as link from "./link.js";
import * as look from "./look.js";
import * as measure from "./measure.js";
import * as media from "./media.js";
import * as truth from "./truth.js";

const TOAST_MS = 4000;
const WIDE_PX = 1500;         // from this width the panel is open unless it was closed
const BLINK_MS = 700;         // long enough to look, short enough to compare

const $ = (id) => document.getElementById(id);
const listeners = { status: [], frame: [], missing: [], measured: [] };

function side(name) {
  return { name, bitmap: null, area: null, image: null, meta: null, capturedAt: 0 };
}

const sides = { left: side("left"), right: side("right"), difference: side("difference") };

export const page = {
  view: { x: 0, y: 0, zoom: 1, fit: true },  // centre in raw pixels, CSS pixels per raw pixel
  mode: "side",
  paused: false,
  at: null,                   // index of the earlier frame that is looked at; null: the newest
  channel: "",                // "": follow the newest; "*": composite
  swipe: 0.5,                 // where the line is, as a share of the canvas
  blinkRight: true,           // which image is on in blink mode
  mask: false,
  field: null,                // [Y, X] of the raw frame
  header: null,               // of the frame that is shown
  report: null,               // the last status message
  connected: false,
  token: null,                // sent with each request when there is one

  on(what, listener) { listeners[what].push(listener); },
  tell(what, content) { for (const listener of listeners[what]) listener(content); },
  side(name) { return sides[name]; },
  // A request replaces one that still waits; `extra` fields belong to this request only.
  ask(extra = {}) { link.ask(page, extra); },
  redraw() { draw.redraw(page); },
  // Shows the frame at an index such as {t: 3, c: 0}; null shows the newest again.
  lookBack(index) { page.at = index; page.ask(); },
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

  setMode(mode) {
    page.mode = mode;
    document.querySelector("main").dataset.mode = mode;
    for (const button of $("modes").children) button.setAttribute("aria-checked", String(button.dataset.mode === mode));
    localStorage.setItem("mode", mode);
    look.show(page);
    page.redraw();
    page.ask();
  },
  setPaused(on) {
    page.paused = on;
    $("pause").textContent = on ? "Resume" : "Pause";
    $("pause").setAttribute("aria-pressed", String(on));
    page.ask();
  },
  setMask(on) {
    page.mask = on;
    $("mask").setAttribute("aria-pressed", String(on));
    page.ask();
  },
  setPanel(open) {
    $("panel").hidden = !open;
    $("panel_toggle").setAttribute("aria-pressed", String(open));
    localStorage.setItem("panel", open ? "open" : "closed");
    look.show(page);
    page.redraw();
    page.ask();  // with or without histograms
  },
  setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    look.show(page);
  },
  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen();
  },
};

function start() {
  const light = matchMedia("(prefers-color-scheme: light)");
  const prefer = () => page.setTheme(localStorage.getItem("theme") ?? (light.matches ? "light" : "dark"));
  light.addEventListener("change", prefer);

  draw.start(page);
  look.start(page);
  prefer();
  truth.start(page);
  measure.start(page);
  gestures.start(page);
  keys.start(page);
  media.start(page);
  controls.start(page);

  for (const button of $("modes").children) button.addEventListener("click", () => page.setMode(button.dataset.mode));
  $("pause").addEventListener("click", () => page.setPaused(!page.paused));
  $("mask").addEventListener("click", () => page.setMask(!page.mask));
  $("full").addEventListener("click", page.fullScreen);
  $("panel_toggle").addEventListener("click", () => page.setPanel($("panel").hidden));
  $("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", theme);
    page.setTheme(theme);
  });
  document.addEventListener("fullscreenchange", () => document.body.classList.toggle("bare", Boolean(document.fullscreenElement)));
  setInterval(() => {
    if (page.mode !== "blink") return;
    page.blinkRight = !page.blinkRight;
    page.redraw();
  }, BLINK_MS);

  const modes = [...$("modes").children].map((button) => button.dataset.mode);
  const mode = localStorage.getItem("mode");
  page.setMode(modes.includes(mode) ? mode : "side");
  page.setPanel((localStorage.getItem("panel") ?? (window.innerWidth >= WIDE_PX ? "open" : "closed")) === "open");
  link.connect(page);
}

start();
