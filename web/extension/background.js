// Joins each page to a native-messaging host of its own, `opcert native-host`.
//
// The page's origin is the browser's own word (`sender.origin`), put into every message here; what
// a page says about itself is never read. The daemon decides which origins it serves. The browser's
// languages are put in as well, as they are into the requests that a page makes itself.

"use strict";

const HOST = "opcert.host";

chrome.runtime.onConnect.addListener((page) => {
  const { origin, frameId, id } = page.sender ?? {};
  // Other extensions, and frames that a page shows, have no business here.
  if (id !== chrome.runtime.id || frameId !== 0 || !origin?.startsWith("https://")) {
    page.disconnect();
    return;
  }
  const host = chrome.runtime.connectNative(HOST);
  const open = new Set();

  host.onMessage.addListener((message) => {
    if (message.opcert !== "chunk") open.delete(message.id);
    page.postMessage(message);
  });
  host.onDisconnect.addListener(() => {
    const why = chrome.runtime.lastError?.message ?? "it ended";
    for (const id of open) {
      page.postMessage({ opcert: "failure", id, detail: `the native-messaging host: ${why}` });
    }
    open.clear();
    page.disconnect();
  });

  page.onMessage.addListener(({ opcert, id, method, path, body, stream }) => {
    if (opcert === "request") {
      open.add(id);
      const language = navigator.languages.join(",");
      host.postMessage({ opcert, id, origin, language, method, path, body, stream: stream === true });
    } else if (opcert === "abort" && open.delete(id)) {
      host.postMessage({ opcert, id });
    }
  });
  page.onDisconnect.addListener(() => host.disconnect());
});
