// Stands between a page and the extension. It decides nothing: it hands on what the page sends, and
// gives back what comes. Where the page is from, the browser tells the extension itself.

"use strict";

// The page's module looks for this mark before it chooses the extension.
document.documentElement.dataset.opcertExtension = chrome.runtime.getManifest().version;

// Opened by the first request and kept while requests are under way: closing it ends the host.
let port = null;
const open = new Set();

function tell(message) {
  window.postMessage(message, location.origin);
}

function connect() {
  port = chrome.runtime.connect({ name: "opcert" });
  port.onMessage.addListener((message) => {
    if (message.opcert !== "chunk") open.delete(message.id);
    tell(message);
  });
  port.onDisconnect.addListener(() => {
    port = null;
    for (const id of open) {
      tell({ opcert: "failure", id, detail: "the browser extension was stopped" });
    }
    open.clear();
  });
}

window.addEventListener("message", (event) => {
  if (event.source !== window || event.origin !== location.origin) return;
  const { opcert, id, method, path, body, stream } = event.data ?? {};
  if (typeof id !== "string" || id.length > 64) return;
  if (opcert === "request") {
    try {
      if (port === null) connect();
      open.add(id);
      port.postMessage({ opcert, id, method, path, body, stream });
    } catch (error) {
      open.delete(id);
      tell({ opcert: "failure", id, detail: `the browser extension cannot be reached: ${error}` });
    }
  } else if (opcert === "abort" && open.delete(id)) {
    port?.postMessage({ opcert, id });
  }
});
