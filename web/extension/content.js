// Stands between a page and the extension. It decides nothing: it hands on what the page sends, and
// gives back what comes. Where the page is from, the browser tells the extension itself.

"use strict";

// The page's module looks for this mark before it chooses the extension.
document.documentElement.dataset.opcertExtension = chrome.runtime.getManifest().version;

// After so many milliseconds without a request the host is let go; the next one starts another.
const IDLE = 5_000;

// Opened by a request: closing it ends the host, and all its requests with it.
let port = null;
let idle;
const open = new Set();

function tell(message) {
  window.postMessage(message, location.origin);
}

function connect() {
  port = chrome.runtime.connect({ name: "opcert" });
  port.onMessage.addListener((message) => {
    if (message.opcert !== "chunk") done(message.id);
    tell(message);
  });
  port.onDisconnect.addListener(() => leave("the browser extension was stopped"));
}

function done(id) {
  open.delete(id);
  clearTimeout(idle);
  if (open.size === 0) idle = setTimeout(leave, IDLE, "nobody asked for anything");
}

function leave(why) {
  clearTimeout(idle);
  const left = port;
  port = null;
  left?.disconnect();
  for (const id of open) tell({ opcert: "failure", id, detail: why });
  open.clear();
}

window.addEventListener("message", (event) => {
  if (event.source !== window || event.origin !== location.origin) return;
  const { opcert, id, method, path, body, stream } = event.data ?? {};
  if (typeof id !== "string" || id.length > 64) return;
  if (opcert === "request") {
    clearTimeout(idle);
    try {
      if (port === null) connect();
      port.postMessage({ opcert, id, method, path, body, stream });
      open.add(id);
    } catch (error) {
      // So it is after an update of the extension, until the page is loaded again.
      leave("the browser extension was stopped");
      tell({ opcert: "failure", id, detail: `the browser extension cannot be reached: ${error}` });
    }
  } else if (opcert === "abort" && open.has(id)) {
    port.postMessage({ opcert, id });
    done(id);
  }
});

// The browser may keep a page that was left, and show it again; the port it closes without a word.
window.addEventListener("pagehide", () => leave("the page was left"));
