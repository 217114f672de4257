// What the operator may change: the token, the models, super-resolution, the sequence. What is shown is what the
// acquisition says; a command that was given shows when it has been obeyed, and not before.

import * as drop from "./drop.js";

const SILENT_S = 2;           // eight status messages missing
const MAIN = "";              // the model of all channels that are not named

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

export function start(page) {
  const section = document.getElementById("controls");
  const rights = { control: false, watch: true, possible: true, listeners: [] };
  const panel = buildPanel(page, section);
  panel.lock.append(tokenForm(page));
  section.append(panel.root);
  drop.start(page, section, rights);
  const show = () => panel.show(page.report, rights);
  page.on("status", show);
  rights.listeners.push(show);
  askForToken(page);
  enter(page, rights);
  addEventListener("hashchange", () => enter(page, rights));
}

// ------------------------------------------------------------------ the token

// A token in the address is exchanged for a cookie, and does not stay in the address and the history.
async function enter(page, rights) {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    const refusal = await give(given);
    if (refusal) page.say(refusal, "bad");
    else if (!page.report) return location.reload();  // what was refused before is asked for again
  }
  await learn(rights);
}

async function learn(rights) {
  const answer = await fetch("/access").catch(() => null);
  if (!answer?.ok) return;
  Object.assign(rights, await answer.json());
  const dialog = document.getElementById("enter");
  if (!rights.watch && !dialog.open) dialog.showModal();
  for (const listener of rights.listeners) listener();
}

async function give(token) {
  try {
    const answer = await fetch("/access", { method: "POST", body: token });
    return answer.ok ? "" : (await answer.text()).trim();
  } catch {
    return "live-sr view does not answer";
  }
}

function tokenForm(page) {
  const input = element("input", { type: "password", autocomplete: "off", required: true, placeholder: "token" });
  input.setAttribute("aria-label", "token");
  const refused = element("p", { className: "why bad" });
  refused.setAttribute("role", "alert");
  const form = element("form", { className: "token" }, input, element("button", {}, "Unlock"), refused);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    refused.textContent = await give(input.value.trim());
    if (refused.textContent) return input.select();
    location.reload();
  });
  return form;
}

// Where the page is served to other machines, nothing is shown before the token is given.
function askForToken(page) {
  const dialog = element("dialog", { id: "enter" },
    element("h2", {}, "Token"),
    element("p", {}, "This page is open to those who have its token. `live-sr view` printed it when it started, after “to control”."),
    tokenForm(page));
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog);
}

// ------------------------------------------------------------------ the panel

function buildPanel(page, section) {
  const lock = element("div", { className: "lock" },
    element("p", {}, "You are watching. To control, give the token that `live-sr view` printed."));
  const off = element("p", { className: "why" });
  const models = element("div", { className: "models" });
  const sr = toggle(page);
  const sequence = buttons(page);
  const body = element("div", { className: "body" }, models, sr.root, sequence.root);
  const root = element("div", { id: "control" }, element("h2", {}, "Acquisition"), lock, off, body);
  const selects = new Map();

  function show(report, rights) {
    const status = report?.status;
    const control = status?.control;
    lock.hidden = rights.control || !rights.possible;
    const why = whyNot(report, rights);
    off.textContent = why;
    off.hidden = !why || !lock.hidden;
    body.hidden = !control?.address;
    if (body.hidden) return;
    const allowed = new Set(control.allowed);
    models.hidden = !allowed.has("choose");
    if (!models.hidden) showModels(page, models, selects, status, why);
    sr.show(allowed.has("sr"), control.sr_on, why);
    sequence.show(allowed, status, why);
  }
  return { root, lock, show };
}

// Why nothing can be controlled; empty when it can.
function whyNot(report, rights) {
  const status = report?.status;
  if (!rights.possible) return "This page has no token: its `live-sr view` said why when it started.";
  if (!status) return "No acquisition yet.";
  if (!status.control.address) return "This acquisition takes no commands. Its program allows them with LiveSR(…, control=\"tcp://127.0.0.1:*\").";
  if (report.feed.silent_s > SILENT_S) return "No word from the acquisition.";
  if (!rights.control) return "Give the token first.";
  return "";
}

// Forbids with a reason that can be read and heard, or allows.
function forbid(control, why) {
  control.disabled = Boolean(why);
  control.title = why || control.dataset.title || "";
}

// One command at a time from each control, which keeps the focus meanwhile.
async function command(page, control, said) {
  if (control.ariaBusy === "true") return;
  control.ariaBusy = "true";
  try {
    const answer = await page.request("/control", { method: "POST", body: JSON.stringify(said) });
    const isReply = answer.headers.get("content-type")?.startsWith("application/json");
    const text = isReply ? (await answer.json()).message : (await answer.text()).trim();
    page.say(text, answer.ok ? "" : "bad");
    if (answer.status === 401) location.reload();  // the cookie is over: the page asks for the token again
  } catch {
    page.say("live-sr view does not answer: the command was not given", "bad");
  } finally {
    control.ariaBusy = "false";
  }
}

// ------------------------------------------------------------------ models

function showModels(page, root, selects, status, why) {
  const { models, chosen } = status.control;
  const channels = [...new Set([...status.sequence.channels, ...Object.keys(chosen)])].filter((name) => name !== MAIN);
  const names = [...channels, MAIN];
  for (const [name, row] of selects) {
    if (!names.includes(name)) { row.root.remove(); selects.delete(name); }
  }
  for (const name of names) {
    if (!selects.has(name)) {
      selects.set(name, modelRow(page, name));
      root.insertBefore(selects.get(name).root, name === MAIN ? null : selects.get(MAIN)?.root ?? null);
    }
    const one = models.length < 2 && name === MAIN ? "The server holds one model; live-sr serve --model A --model B holds several." : "";
    const label = name !== MAIN ? name : channels.length ? "all others" : "model";
    selects.get(name).show(label, models, chosen[name] ?? "", why || (models.length ? one : "No server is ready."));
  }
}

function modelRow(page, channel) {
  const select = element("select");
  const name = element("span");
  const note = element("small", { className: "why" });
  let offered = "";
  let current = "";
  select.addEventListener("change", () => {
    const model = select.value;
    select.value = current;  // until the acquisition says otherwise
    command(page, select, { type: "choose", model, channel });
  });
  const root = element("div", { className: "row model" }, element("label", {}, name, select), note);
  function show(label, models, value, why) {
    name.textContent = label;
    const others = channel === MAIN ? (value ? [] : [""]) : [""];
    const now = JSON.stringify([models, others, value]);
    if (now !== offered) {
      offered = now;
      const known = [...others, ...models, ...(value && !models.includes(value) ? [value] : [])];
      select.replaceChildren(...known.map((id) => element("option", { value: id }, id || (channel === MAIN ? "–" : "as all others"))));
    }
    if (value !== current) select.value = value;
    current = value;
    select.ariaLabel = label === "model" ? label : `model of ${label}`;
    forbid(select, why);
    note.textContent = channel === MAIN && why && models.length === 1 ? why : "";
  }
  return { root, show };
}

// ------------------------------------------------------------------ super-resolution, sequence

function toggle(page) {
  const button = element("button", { className: "switch" });
  button.setAttribute("role", "switch");
  button.setAttribute("aria-label", "super-resolution");
  button.dataset.title = "off: frames are only stored, and super-resolved later";
  const note = element("small", { className: "why" });
  const root = element("div", { className: "row" }, element("span", { className: "name" }, "super-resolution"), button, note);
  button.addEventListener("click", () => {
    command(page, button, { type: "sr", on: button.getAttribute("aria-checked") !== "true" });
  });
  function show(allowed, on, why) {
    root.hidden = !allowed;
    button.setAttribute("aria-checked", String(on));
    button.textContent = on ? "on" : "off";
    note.textContent = on ? "" : "Frames are stored and shown raw; they are super-resolved later.";
    forbid(button, why);
  }
  return { root, show };
}

const STATES = { idle: "no sequence is running", running: "running", paused: "paused" };

function buttons(page) {
  const state = element("span", { className: "name" });
  const startIt = element("button", { className: "start" }, "Start");
  const pause = element("button", { className: "pause" }, "Pause acquisition");
  const cancel = element("button", { className: "cancel" }, "Cancel…");
  const row = element("div", { className: "buttons" }, startIt, pause, cancel);
  const root = element("div", { className: "row sequence" }, state, row);
  const confirm = confirmation(() => command(page, cancel, { type: "cancel" }));
  startIt.dataset.title = "lets the program go on that waits for the operator";
  pause.dataset.title = "the microscope stops after the frame being exposed; to freeze the picture alone, press space";
  cancel.dataset.title = "ends the sequence; what was acquired stays";
  startIt.addEventListener("click", () => command(page, startIt, { type: "start" }));
  pause.addEventListener("click", () => command(page, pause, { type: "pause", on: pause.dataset.paused !== "yes" }));
  cancel.addEventListener("click", () => confirm.showModal());
  document.body.append(confirm);

  function show(allowed, status, why) {
    const { state: now, number } = status.sequence;
    const waits = status.control.start_awaited;
    startIt.hidden = !allowed.has("start") || !waits;  // most programs never wait
    pause.hidden = !allowed.has("pause");
    cancel.hidden = !allowed.has("cancel");
    root.hidden = startIt.hidden && pause.hidden && cancel.hidden;
    state.textContent = waits ? "waiting to be started" : number && now !== "idle" ? `sequence ${number}: ${STATES[now]}` : STATES[now];
    pause.dataset.paused = now === "paused" ? "yes" : "";
    pause.textContent = now === "paused" ? "Resume acquisition" : "Pause acquisition";
    const idle = now === "idle" ? "No sequence is running." : "";
    forbid(startIt, why);
    forbid(pause, why || idle);
    forbid(cancel, why || idle);
    if (confirm.open && cancel.disabled) confirm.close();
  }
  return { root, show };
}

function confirmation(act) {
  const no = element("button", { value: "no", autofocus: true }, "Keep acquiring");
  const yes = element("button", { value: "yes", className: "danger" }, "Cancel the sequence");
  const form = element("form", { method: "dialog" }, no, yes);
  const dialog = element("dialog", { id: "confirm" },
    element("h2", {}, "Cancel the sequence?"),
    element("p", {}, "It ends after the frame being exposed and cannot be resumed. What was acquired stays, and is super-resolved to its end."),
    form);
  dialog.addEventListener("close", () => { if (dialog.returnValue === "yes") act(); dialog.returnValue = ""; });
  return dialog;
}
