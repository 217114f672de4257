// Talks to the server: asks for an image when the last one is there, so that at most one is ever under way.

import { wanted } from "./draw.js";
import { asked } from "./look.js";

const RETRY_MS = 1000;

let socket = null;
let last = Promise.resolve(); // answers are taken one after the other
let soon = false;

export function connect(page) {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    page.connected = true;
    if (page.paused) {  // the server no longer knows which frame was held
      page.say("the connection was lost: showing the newest again", "warn");
      page.setPaused(false);
    } else {
      page.ask();
    }
  };
  socket.onclose = () => {
    page.connected = false;
    page.tell("status", page.report);
    setTimeout(() => connect(page), RETRY_MS);
  };
  socket.onmessage = (event) => {
    if (typeof event.data !== "string") {
      last = last.then(() => receive(page, event.data));
      return;
    }
    const said = JSON.parse(event.data);
    if (said.missing) page.tell("missing", said.missing);
    else if (said.measured) page.tell("measured", said.measured);
    else {
      page.report = { ...said, at: performance.now() };
      page.tell("status", page.report);
    }
  };
}

export function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

export function ask(page, extra) {
  const same = JSON.stringify(page.at) === JSON.stringify(page.header?.at ?? null);
  send({
    type: "ask",
    ...wanted(page),
    ...asked(page),
    mask: page.mask,
    exact: page.paused,
    again: page.paused && same,
    at: page.at,
    ...extra,
  });
}

// Once per drawn frame, however often the pointer moves.
export function askSoon(page) {
  if (soon) return;
  soon = true;
  requestAnimationFrame(() => { soon = false; page.ask(); });
}

async function receive(page, buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const now = performance.now();
  let offset = 4 + length;
  try {
    const bitmaps = {};
    for (const [name, image] of Object.entries(header.images)) {
      if (image.same) continue;
      bitmaps[name] = createImageBitmap(new Blob([new Uint8Array(buffer, offset, image.bytes)], { type: image.type }));
      offset += image.bytes;
    }
    for (const name of ["left", "right", "difference"]) {
      const side = page.side(name);
      const image = header.images[name];
      const bitmap = bitmaps[name] ? await bitmaps[name] : null;
      if (bitmap || !image) {  // what is not on the screen is not kept: it would be drawn as the newer frame
        side.bitmap?.close();
        side.bitmap = bitmap;
      }
      side.image = image ?? null;
      side.area = image?.area ?? null;
      if (name === "difference") continue;
      side.meta = header[name];
      if (side.meta) side.capturedAt = now - side.meta.age_ms;
    }
    learn(page, header);
    page.redraw();
    page.tell("frame", header);
  } finally {
    if (!page.paused) page.ask();
  }
}

function learn(page, header) {
  page.header = header;
  const meta = header.left ?? header.right;
  if (!page.field || page.field[0] !== meta.field[0] || page.field[1] !== meta.field[1]) {
    page.field = meta.field;
    page.view.fit = true;
    page.ask();  // the part asked for was that of another field
  }
}
