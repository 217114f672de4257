// Earlier frames of the run: sliders, thumbnails; snapshots and movies of it.

import { asked as drawing } from "./look.js";
import { duration } from "./truth.js";

const POLL_MS = 1000;         // how often it is asked how far the run has come
const MOVIE_POLL_MS = 300;    // and how far a movie is
const RETRY_MS = 3000;        // when a thumbnail that was not there is asked for again
const AT_ONCE = 2;            // thumbnails under way
const THUMBNAIL_PX = 96;
const KEEP_MS = 60_000;       // a file that the browser is saving
const PLAIN = { low: 0, high: 255, gamma: 1, lut: "grey" };

const $ = (id) => document.getElementById(id);

let run = { key: "", axes: {}, labels: {}, notes: [], strip: [], movie: null };
let newest = {};              // place of the newest frame
let chosen = {};              // where one looked last: there the strip and movies stay along the other axes
let used = null;              // the axis that the arrow keys move along
let missing = null;           // the place that was asked for and is not there
let stripAxis = "";           // chosen; "": the longest
let saved = null;             // link to the last movie
let movieAxis = "";           // chosen; "": that of the strip
let mine = 0;                 // number of the movie that this page asked for
let polling = null;
let asking = false;
const thumbnails = new Map(); // by position along the strip's axis
let underWay = 0;
let eye = null;

export function start(page) {
  page.on("frame", (header) => frame(page, header));
  page.on("missing", (place) => { missing = place; showLooking(page); });
  page.on("status", () => showLooking(page));
  $("live").addEventListener("click", () => live(page));
  $("strip_toggle").addEventListener("click", () => setStrip(page, $("strip").hidden));
  $("strip_axis").addEventListener("change", () => { stripAxis = $("strip_axis").value; clearStrip(); poll(page); });
  eye = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      const thumbnail = thumbnails.get(Number(target.dataset.at));
      if (thumbnail) thumbnail.seen = isIntersecting;
    }
    load(page);
  }, { root: $("strip"), rootMargin: "0px 200px" });
  document.addEventListener("keydown", (event) => key(page, event));
  startSnapshots(page);
  startMovie(page);
  setStrip(page, localStorage.getItem("strip") !== "closed");
  poll(page);
}

// ------------------------------------------------------------------ how far the run has come

async function poll(page) {
  if (asking) return;
  asking = true;
  try {
    if (page.connected && !document.hidden) {
      const query = new URLSearchParams({ axis: axisOfStrip(), at: JSON.stringify(others(axisOfStrip())) });
      const response = await page.request(`/run.json?${query}`);
      if (response.ok) learn(page, await response.json());
    }
  } catch {
    // The page has lost contact, which is said elsewhere.
  } finally {
    asking = false;
    clearTimeout(polling);
    polling = setTimeout(() => poll(page), run.movie?.state === "working" ? MOVIE_POLL_MS : POLL_MS);
  }
}

function learn(page, said) {
  const other = said.key !== run.key;
  if (other && page.at && run.key) {
    page.say("the next run has begun", "warn");
    live(page);
  }
  run = said;
  if (other) { clearStrip(); stripAxis = movieAxis = ""; used = null; chosen = {}; }
  const along = shown();
  $("timeline").hidden = along.length === 0;
  if (!along.includes(used)) used = axisOfStrip();
  showSliders(page);
  choices($("strip_axis"), along, axisOfStrip());
  $("strip_axis").hidden = along.length < 2 || $("strip").hidden;
  showStrip(page);
  showLooking(page);
  showMovie(page);
}

// Axes along which there is more than one frame.
function shown() {
  return Object.keys(run.axes).filter((axis) => run.axes[axis].last > run.axes[axis].first);
}

function axisOfStrip() {
  const along = shown();
  if (along.includes(stripAxis)) return stripAxis;
  const length = (axis) => run.axes[axis].last - run.axes[axis].first;
  return along.reduce((best, axis) => (best && length(best) >= length(axis) ? best : axis), "");
}

// Where we are: the frame that is looked at, or the newest.
function here(page) {
  return page.at ?? newest;
}

// Place along the other axes.
function others(axis) {
  return Object.fromEntries(Object.keys(run.axes).filter((name) => name !== axis).map((name) => [name, chosen[name] ?? 0]));
}

function words(place) {
  const along = shown();
  return Object.entries(place).filter(([axis]) => along.includes(axis)).map(([axis, at]) => `${axis} ${at}`).join("  ");
}

function frame(page, header) {
  missing = null;
  const meta = header.left ?? header.right;  // the acquired image is the newer one
  if (!header.at && meta) newest = meta.kind === "sequence" ? meta.place : { frame: meta.seq };
  const c = run.labels.c?.indexOf(page.channel) ?? -1;
  if (!page.at && c >= 0) chosen.c = c;
  if (meta && !run.key.startsWith(`${meta.session}/`)) poll(page);  // another acquisition
  showSliders(page);
  markStrip(page);
  showLooking(page);
}

// ------------------------------------------------------------------ looking back

function lookAt(page, axis, position) {
  used = axis;
  const { first, last } = run.axes[axis];
  const to = Math.min(Math.max(position, first), last);
  const place = Object.fromEntries(Object.keys(run.axes).map((name) => [name, name === axis ? to : chosen[name] ?? 0]));
  chosen = place;
  page.lookBack(place);
  showSliders(page);
  showStrip(page);
  showLooking(page);
}

function live(page) {
  missing = null;
  page.lookBack(null);
  showSliders(page);
  showLooking(page);
  $("strip").scrollLeft = $("strip").scrollWidth;
}

function showSliders(page) {
  const box = $("sliders");
  const along = shown();
  if ([...box.children].map((label) => label.dataset.axis).join() !== along.join()) {
    box.replaceChildren(...along.map((axis) => slider(page, axis)));
  }
  for (const label of box.children) {
    const axis = label.dataset.axis;
    const { first, last, size } = run.axes[axis];
    const input = label.querySelector("input");
    input.min = first;
    input.max = last;
    const at = here(page)[axis] ?? 0;
    input.value = at;
    const named = run.labels[axis]?.[at];
    label.querySelector("output").textContent = named ? `${at} · ${named}` : `${at} / ${(size ?? last + 1) - 1}`;
    label.classList.toggle("used", axis === used);
    label.classList.toggle("long", last - first > 20);
  }
}

function slider(page, axis) {
  const label = document.createElement("label");
  label.dataset.axis = axis;
  label.title = `look back along ${axis}`;
  const name = Object.assign(document.createElement("b"), { textContent: axis });
  const input = Object.assign(document.createElement("input"), { type: "range", step: 1 });
  input.setAttribute("aria-label", axis);
  input.addEventListener("input", () => lookAt(page, axis, Number(input.value)));
  label.append(name, input, document.createElement("output"));
  return label;
}

function showLooking(page) {
  const back = page.at !== null;
  $("timeline").classList.toggle("back", back);
  $("live").setAttribute("aria-pressed", String(!back));
  $("looking").textContent = back ? where(page) : run.notes.join("; ");
  $("looking").title = [$("looking").textContent, ...run.notes].join("\n");
}

function where(page) {
  if (missing) return `${words(missing)} is not there yet; still showing ${page.header?.at ? words(page.header.at) : "the frame before"}`;
  const side = page.side("left").meta ? page.side("left") : page.side("right");
  if (!page.header?.at || !side.meta) return `looking back at ${words(page.at)}`;
  const notes = page.header.notes ?? {};
  const lacking = [notes.left && `acquired: ${notes.left}`, notes.right && `computed: ${notes.right}`].filter(Boolean);
  const ago = `${duration(performance.now() - side.capturedAt)} ago`;
  return [`looking back at ${words(page.header.at)}`, ago, ...lacking].join(" · ");
}

function key(page, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea")) return;
  if ((event.key === "L" || event.key === "Escape") && page.at) return live(page);
  if (event.shiftKey || !run.axes[used] || shown().length === 0) return;
  const { first, last } = run.axes[used];
  const at = here(page)[used] ?? last;
  const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: first, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  lookAt(page, used, to);
}

// ------------------------------------------------------------------ thumbnails

function setStrip(page, open) {
  $("strip").hidden = !open;
  $("strip_toggle").setAttribute("aria-pressed", String(open));
  $("strip_axis").hidden = !open || shown().length < 2;
  localStorage.setItem("strip", open ? "open" : "closed");
  if (open) showStrip(page);
  page.redraw();
}

function clearStrip() {
  thumbnails.clear();
  $("strip").replaceChildren();
}

function showStrip(page) {
  const strip = $("strip");
  if (strip.hidden) return;
  const axis = axisOfStrip();
  const of = JSON.stringify([run.key, axis, others(axis)]);
  if (strip.dataset.of !== of) clearStrip();  // other frames
  strip.dataset.of = of;
  const atEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
  const wanted = new Set(run.strip);
  for (const [at, { button }] of thumbnails) {
    if (wanted.has(at)) continue;
    eye.unobserve(button);
    button.remove();
    thumbnails.delete(at);
  }
  for (const at of run.strip) {
    if (thumbnails.has(at)) continue;
    const made = thumbnail(page, axis, at);
    thumbnails.set(at, made);
    const after = [...strip.children].find((button) => Number(button.dataset.at) > at);
    strip.insertBefore(made.button, after ?? null);
    eye.observe(made.button);
  }
  if (!page.at && atEnd) strip.scrollLeft = strip.scrollWidth;  // follow, unless somebody scrolled
  markStrip(page);
  load(page);
}

function thumbnail(page, axis, at) {
  const button = document.createElement("button");
  button.dataset.at = at;
  button.title = `look back at ${axis} ${at}`;
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMBNAIL_PX, height: THUMBNAIL_PX });
  button.append(canvas, Object.assign(document.createElement("span"), { textContent: `${axis} ${at}` }));
  button.addEventListener("click", () => lookAt(page, axis, at));
  return { button, canvas, place: { ...others(axis), [axis]: at }, seen: false, askedAt: -Infinity, done: false };
}

function markStrip(page) {
  const at = here(page)[axisOfStrip()];
  for (const [position, { button }] of thumbnails) {
    const current = page.at !== null && position === at;
    if (current && button.getAttribute("aria-current") !== "true") button.scrollIntoView({ block: "nearest", inline: "nearest" });
    button.setAttribute("aria-current", String(current));
  }
}

// Those on the screen, newest first, few at a time; again after a while where something better may come.
function load(page) {
  const now = performance.now();
  const due = [...thumbnails.values()].filter((one) => one.seen && !one.done && now - one.askedAt > RETRY_MS).reverse();
  for (const one of due.slice(0, Math.max(0, AT_ONCE - underWay))) fetchThumbnail(page, one);
}

async function fetchThumbnail(page, one) {
  one.askedAt = performance.now();
  underWay += 1;
  try {
    const query = new URLSearchParams({ run: run.key, at: JSON.stringify(one.place) });
    const response = await page.request(`/thumbnail.jpg?${query}`);
    if (response.status === 200) {
      const side = response.headers.get("x-live-sr-side");
      const bitmap = await createImageBitmap(await response.blob());
      one.canvas.width = bitmap.width;
      one.canvas.height = bitmap.height;
      one.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      one.done = side === "sr";
      one.button.className = side;
    } else {
      one.button.className = "none";
    }
  } catch {
    // Lost contact: asked for again later.
  } finally {
    underWay -= 1;
    load(page);
  }
}

// ------------------------------------------------------------------ files

// The answer of a request, or null when it was refused or did not get through, which is said.
async function answer(page, path, options = {}) {
  try {
    const response = await page.request(path, options);
    if (response.ok) return response;
    page.say((await response.text()).trim(), "warn");
  } catch {
    page.say("the request did not get through: try again", "bad");
  }
  return null;
}

// Saves what a request answers under the name that comes with it; null when there is nothing.
async function save(page, path) {
  const response = await answer(page, path);
  if (!response) return null;
  const name = /filename="?([^";]+)/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? "live-sr";
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await response.blob()), download: name });
  link.click();
  return link;
}

async function saveSnapshot(page, path) {
  const link = await save(page, path);
  if (link) setTimeout(() => URL.revokeObjectURL(link.href), KEEP_MS);
}

function startSnapshots(page) {
  const id = () => encodeURIComponent(page.header?.page ?? "");
  $("snap_png").addEventListener("click", () => saveSnapshot(page, `/snapshot.png?page=${id()}`));
  $("snap_raw").addEventListener("click", () => saveSnapshot(page, `/snapshot.tif?side=raw&page=${id()}`));
  $("snap_sr").addEventListener("click", () => saveSnapshot(page, `/snapshot.tif?side=sr&page=${id()}`));
}

function startMovie(page) {
  $("movie_axis").addEventListener("change", () => { movieAxis = $("movie_axis").value; showMovie(page); });
  $("movie").addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = JSON.stringify(asked(page));
    const response = await answer(page, "/movie", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (!response) return;
    run.movie = await response.json();
    mine = run.movie.number;
    showMovie(page);
    poll(page);
  });
  $("movie_cancel").addEventListener("click", async () => {
    await answer(page, "/movie", { method: "DELETE" });
    poll(page);
  });
}

function asked(page) {
  const axis = $("movie_axis").value;
  const last = $("movie_last").value;
  const { looks } = drawing(page);
  const look = looks[(page.side("left").meta ?? page.side("right").meta)?.channel ?? ""];
  const { low, high, gamma, lut } = $("movie_show").value === "sr" && !look?.shared ? look?.right ?? PLAIN : look?.left ?? PLAIN;
  return {
    axis,
    at: others(axis),
    first: Number($("movie_first").value),
    ...(last === "" ? {} : { last: Number(last) }),
    every: Number($("movie_every").value),
    kind: $("movie_kind").value,
    show: $("movie_show").value,
    contrast: $("movie_contrast").value,
    low,
    high,
    gamma,
    lut,
    frames_per_s: Number($("movie_fps").value),
    panel_px: Number($("movie_px").value),
  };
}

function showMovie(page) {
  const along = shown();
  choices($("movie_axis"), along, movieAxis || axisOfStrip());
  const at = words(others($("movie_axis").value));
  $("movie_at").textContent = at && `at ${at}`;
  const movie = run.movie;
  const working = movie?.state === "working";
  $("movie_make").disabled = working || along.length === 0;
  $("movie_cancel").hidden = $("movie_bar").hidden = !working;
  if (!movie || (movie.number !== mine && !working)) return;
  $("movie_bar").value = movie.total ? movie.done / movie.total : 0;
  if (working) sayMovie(`frame ${movie.done} of ${movie.total}`);
  else if (movie.state === "done") fetchMovie(page, movie);
  else if (movie.state === "failed") sayMovie(movie.text, true);
  else if (movie.state === "cancelled") sayMovie("cancelled");
}

async function fetchMovie(page, movie) {
  mine = 0;
  sayMovie(`saving ${movie.name}`);
  const link = await save(page, `/movie/${movie.number}`);
  sayMovie(link ? [`, ${(movie.size_bytes / 1e6).toFixed(1)} MB`, movie.text].filter(Boolean).join("; ") : "not saved", !link);
  if (saved) URL.revokeObjectURL(saved.href);
  saved = link;
  if (!link) return;
  link.textContent = movie.name;  // to be saved again: the server has deleted it
  $("movie_said").prepend(link);
}

function sayMovie(text, bad = false) {
  $("movie_said").textContent = text;
  $("movie_said").className = bad ? "bad" : "";
}

function choices(select, names, picked) {
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  if (names.includes(picked)) select.value = picked;
}
