// Bring your own data: sends files, follows what becomes of them, and gives the results back.

const POLL_MS = 1000;         // while something is in work
const SOON_MS = 2000;         // after a download was begun

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

export function start(page, section, rights) {
  const input = element("input", { type: "file", multiple: true, accept: ".tif,.tiff,.png,image/tiff,image/png" });
  input.setAttribute("aria-describedby", "drop_about");
  const about = element("small", { id: "drop_about" });
  const zone = element("label", { className: "drop" }, input, element("b", {}, "Choose files"), " or drop them anywhere on this page", about);
  const why = element("p", { className: "why" });
  const list = element("ul", { className: "files" });
  const cover = element("div", { id: "cover", hidden: true }, element("p", {}, "Drop to enhance"));
  section.append(element("div", { id: "files" }, element("h2", {}, "Your own files"), why, zone, list));
  document.body.append(cover);

  const sending = new Map();  // this page's uploads, by a number of ours
  const cards = new Map();
  let told = { server: "", why_not: "", max_bytes: 0, jobs: [] };
  let timer = 0;

  async function poll() {
    clearTimeout(timer);
    if (rights.control) {
      const answer = await page.request("/jobs").catch(() => null);
      if (answer?.ok) told = await answer.json();
    }
    show();
    const busy = told.jobs.some((job) => ["waiting", "running"].includes(job.state));
    if (busy) timer = setTimeout(poll, POLL_MS);
  }

  function show() {
    const locked = rights.control ? "" : rights.possible ? "Give the token first: files are taken from those who may control." : "This page has no token, so it takes no files.";
    why.textContent = locked || told.why_not;
    why.hidden = !why.textContent;
    zone.hidden = Boolean(why.textContent);
    about.textContent = `TIFF, OME-TIFF or PNG, 8 or 16 bit grey, up to ${size(told.max_bytes)}`;
    const wanted = [
      ...[...sending.values()].map((upload) => ({ ...upload, key: `u${upload.id}` })),
      // Those still on their way are shown by the page that sends them.
      ...told.jobs.filter((job) => job.state !== "uploading").map((job) => ({ ...job, key: job.id })),
    ].reverse();
    const keys = new Set(wanted.map((item) => item.key));
    for (const [key, card] of cards) {
      if (!keys.has(key)) { card.root.remove(); cards.delete(key); }
    }
    for (const [n, item] of wanted.entries()) {
      if (!cards.has(item.key)) cards.set(item.key, makeCard(page, poll));
      const card = cards.get(item.key);
      if (list.children[n] !== card.root) list.insertBefore(card.root, list.children[n] ?? null);
      card.show(item);
    }
  }

  function send(files) {
    if (!rights.control || told.why_not) {
      page.setPanel?.(true);
      return page.say(why.textContent || told.why_not, "warn");
    }
    page.setPanel?.(true);
    for (const file of files) sendOne(file);
  }

  function sendOne(file) {
    if (file.size > told.max_bytes) {
      return page.say(`${file.name} has ${size(file.size)}, the limit is ${size(told.max_bytes)}`, "bad");
    }
    const id = Math.random();
    const request = new XMLHttpRequest();  // fetch does not tell how much was sent
    const upload = { id, name: file.name, state: "sending", share: 0, cancel: () => request.abort(), dismiss: () => { sending.delete(id); show(); } };
    sending.set(id, upload);
    request.open("POST", `/jobs?name=${encodeURIComponent(file.name)}`);
    request.upload.onprogress = (event) => { upload.share = event.loaded / Math.max(1, event.total); show(); };
    request.onload = () => {
      if (request.status === 201) sending.delete(id);
      else fail(request.responseText.trim() || `refused (${request.status})`);
      poll();
    };
    request.onerror = () => { fail("The connection broke while it was sent: send it again."); show(); };
    request.onabort = () => { sending.delete(id); show(); };
    function fail(reason) { Object.assign(upload, { state: "refused", detail: reason }); }
    request.send(file);
    show();
    zone.scrollIntoView({ block: "start" });  // a short panel would not show the file below it
  }

  input.addEventListener("change", () => { send([...input.files]); input.value = ""; });

  // Wherever a file is dropped, the browser must not open it instead of the page.
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; cover.hidden = false; } });
  addEventListener("dragleave", (event) => { if (hasFiles(event) && (depth -= 1) <= 0) { depth = 0; cover.hidden = true; } });
  addEventListener("dragover", (event) => { if (hasFiles(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    cover.hidden = true;
    send([...event.dataTransfer.files]);
  });
  addEventListener("beforeunload", (event) => { if ([...sending.values()].some((upload) => upload.state === "sending")) event.preventDefault(); });
  rights.listeners.push(poll);
  show();
}

// ------------------------------------------------------------------ one file

function makeCard(page, poll) {
  const name = element("b", { className: "name" });
  const detail = element("p", { className: "detail" });
  const bar = element("progress", { max: 1 });
  const notes = element("div", { className: "notes" });
  const fetchIt = element("a", { className: "button", download: "" }, "Download");
  const again = element("button", {}, "Try again");
  const remove = element("button", {}, "Cancel");
  const buttons = element("div", { className: "buttons" }, fetchIt, again, remove);
  const picture = element("div");
  const root = element("li", { className: "file" }, name, detail, bar, picture, notes, buttons);
  let item = null;
  let compared = false;

  fetchIt.addEventListener("click", () => setTimeout(poll, SOON_MS));
  again.addEventListener("click", () => ask("POST", "/again"));
  remove.addEventListener("click", () => (item.cancel ? (item.state === "sending" ? item.cancel : item.dismiss)() : ask("DELETE", "")));
  async function ask(method, what) {
    const answer = await page.request(`/jobs/${item.id}${what}`, { method }).catch(() => null);
    if (!answer?.ok) page.say(answer ? (await answer.text()).trim() : "live-sr view does not answer", "bad");
    poll();
  }

  function show(now) {
    item = now;
    root.dataset.state = item.state;
    name.textContent = item.name;
    name.title = item.name;
    detail.textContent = describe(item);
    bar.hidden = !["sending", "waiting", "running"].includes(item.state);
    const share = item.state === "sending" ? item.share : item.planes > 1 && item.done ? item.done / item.planes : null;
    if (share === null) bar.removeAttribute("value"); else bar.value = share;
    bar.setAttribute("aria-label", `${item.name}: ${item.state}`);
    notes.replaceChildren(...(item.notes ?? []).map((note) => element("p", { className: "why" }, note)));
    fetchIt.hidden = item.state !== "done";
    if (!fetchIt.hidden) {
      fetchIt.href = `/jobs/${item.id}/result`;
      fetchIt.title = `${item.result}, ${size(item.result_mb * 2 ** 20)}`;
    }
    again.hidden = item.state !== "failed";
    remove.textContent = ["sending", "waiting", "running"].includes(item.state) ? "Cancel" : "Remove";
    if (item.preview && !compared) {
      compared = true;
      picture.append(compare(item));
    }
  }
  return { root, show };
}

function describe(item) {
  const planes = item.planes > 1 ? `${item.done} of ${item.planes} planes` : "";
  const left = item.left_s === null || item.left_s === undefined ? "" : `${duration(item.left_s)} left`;
  const texts = {
    sending: () => (item.share < 1 ? `sending, ${Math.round(item.share * 100)} %` : "sent, being checked"),
    refused: () => item.detail,
    waiting: () => item.detail,
    running: () => [planes, left, item.detail].filter(Boolean).join(" · "),
    done: () => [item.detail, size(item.result_mb * 2 ** 20), `deleted in ${duration(item.kept_s)}`].join(" · "),
    failed: () => item.detail,
  };
  return texts[item.state]?.() ?? item.detail;
}

// Before and after, with a line between them to move.
function compare(item) {
  const before = element("img", { src: `/jobs/${item.id}/before.png`, alt: "part of a plane as it was sent", className: "before" });
  const after = element("img", { src: `/jobs/${item.id}/after.png`, alt: "the same part, computed", className: "after" });
  const line = element("input", { type: "range", min: 0, max: 100, value: 50 });
  line.setAttribute("aria-label", "how much of the computed image is shown");
  const label = element("span", { className: "label" }, "computed image");
  const root = element("div", { className: "compare" }, before, after, label, line);
  const move = () => { root.style.setProperty("--line", `${line.value}%`); };
  line.addEventListener("input", move);
  move();
  return root;
}

function size(bytes) {
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(1)} GB`;
  if (bytes < 2 ** 20) return `${Math.max(1, Math.round(bytes / 2 ** 10))} KB`;
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
