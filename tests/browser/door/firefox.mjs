// The browser door in Firefox ESR, driven by WebDriver BiDi as Debian ships it.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { check, eventually, finish, PATIENCE, place, refusals, screenshot } from "./support.mjs";

/** What the harness's own machine needs; the certificate choice is from `opcert browser setup`. */
const PREFERENCES = {
  "network.dns.localDomains": "portal.test,evil.test",
  // The pages count as public ones, so that Local Network Access is asked about.
  "network.lna.enabled": true,
  "network.lna.blocking": true,
  "network.lna.address_space.public.override": new URL(place.portal).host.replace(
    "portal.test",
    "127.0.0.1",
  ),
  "browser.shell.checkDefaultBrowser": false,
  "datareporting.policy.dataSubmissionEnabled": false,
  "app.update.enabled": false,
};

class Firefox {
  #calls = new Map();
  #last = 0;

  static async launch({ profile, home, leave }) {
    const firefox = new Firefox();
    const preferences = { ...PREFERENCES, "permissions.default.loopback-network": leave };
    appendFileSync(
      join(profile, "user.js"),
      Object.entries(preferences)
        .map(([name, value]) => `user_pref("${name}", ${JSON.stringify(value)});\n`)
        .join(""),
    );
    firefox.process = spawn(
      "firefox-esr",
      ["--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0"],
      { env: { ...process.env, HOME: home, MOZ_HEADLESS: "1" }, stdio: ["ignore", "ignore", "pipe"] },
    );
    const address = await new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error("Firefox is not ready")), PATIENCE);
      firefox.process.on("exit", (code) => reject(new Error(`Firefox ended with ${code}`)));
      createInterface(firefox.process.stderr).on("line", (line) => {
        const found = /WebDriver BiDi listening on (ws:\S+)/.exec(line);
        if (found) {
          clearTimeout(late);
          resolve(found[1]);
        }
      });
    });
    firefox.socket = new WebSocket(`${address}/session`);
    await new Promise((resolve, reject) => {
      firefox.socket.on("open", resolve);
      firefox.socket.on("error", reject);
    });
    firefox.socket.on("message", (text) => {
      const { id, type, result, message } = JSON.parse(text);
      const call = firefox.#calls.get(id);
      firefox.#calls.delete(id);
      if (type === "success") call?.resolve(result);
      else call?.reject(new Error(message));
    });
    await firefox.send("session.new", { capabilities: {} });
    const { contexts } = await firefox.send("browsingContext.getTree", {});
    firefox.context = contexts[0].context;
    return firefox;
  }

  send(method, params) {
    const id = (this.#last += 1);
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`${method} took too long`)), PATIENCE);
      const settle = (how) => (value) => {
        clearTimeout(late);
        how(value);
      };
      this.#calls.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.socket.send(JSON.stringify({ id, method, params }));
    });
  }

  async open(origin) {
    const url = `${origin}/?port=${place.port}`;
    await this.send("browsingContext.navigate", { context: this.context, url, wait: "complete" });
  }

  /** Runs an async function in the page; its value goes through JSON. */
  async run(work, argument) {
    const { result, exceptionDetails } = await this.send("script.evaluate", {
      expression: `(${work})(${JSON.stringify(argument ?? null)}).then(JSON.stringify)`,
      target: { context: this.context },
      awaitPromise: true,
      userActivation: true,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.text);
    return result.value === undefined ? undefined : JSON.parse(result.value);
  }

  /** Clicks a button, and gives what the page says then. */
  async click(id) {
    const expression = `document.getElementById("${id}")`;
    const { result } = await this.send("script.evaluate", {
      expression,
      target: { context: this.context },
      awaitPromise: false,
      resultOwnership: "root",
    });
    const origin = { type: "element", element: { sharedId: result.sharedId } };
    await this.send("input.performActions", {
      context: this.context,
      actions: [
        {
          type: "pointer",
          id: "mouse",
          actions: [
            { type: "pointerMove", x: 0, y: 0, origin },
            { type: "pointerDown", button: 0 },
            { type: "pointerUp", button: 0 },
          ],
        },
      ],
    });
    return this.run(async () => {
      const said = document.getElementById("said");
      while (said.textContent === "…") {
        await new Promise((resolve) => {
          const observer = new MutationObserver(() => (observer.disconnect(), resolve()));
          observer.observe(said, { childList: true, characterData: true, subtree: true });
        });
      }
      return said.textContent;
    });
  }

  async screenshot(name) {
    const { data } = await this.send("browsingContext.captureScreenshot", { context: this.context });
    writeFileSync(screenshot(name), Buffer.from(data, "base64"));
  }

  async close() {
    const ended = new Promise((resolve) => {
      this.process.removeAllListeners("exit");
      this.process.on("exit", resolve);
    });
    this.process.kill("SIGTERM");
    await ended;
    this.socket.terminate();
  }
}

/** As a preference counts: 1 allows, 2 denies. */
const [ALLOW, DENY] = [1, 2];

async function using(options, work) {
  const firefox = await Firefox.launch(options);
  try {
    await work(firefox);
  } finally {
    await firefox.close();
  }
}

const kind = async (port) => {
  const { connect } = await import("/opcert.js");
  try {
    await connect({ channel: "loopback", port }).status();
    return "ready";
  } catch (error) {
    return error.code ?? error.kind;
  }
};

await using({ ...place.firefox.full, leave: ALLOW }, async (firefox) => {
  await check("the main job, by clicking", async () => {
    await firefox.open(place.portal);
    assert.match(await firefox.click("look"), /^opcert .* answers by loopback\.$/);
    assert.equal(await firefox.click("install"), "The certificate of alice is active.");
    assert.match(await firefox.click("list"), /alice: active/);
    assert.equal(
      await firefox.click("approve"),
      `Approved for ${place.portal} by client:${place.client}.`,
    );
    await firefox.screenshot("firefox-approved");
  });

  for (const [what, options, kind] of [
    ["when the page takes it back", {}, "cancelled"],
    ["when its time is over", { timeout: 3_000 }, "timed-out"],
  ]) {
    await check(`a request that waits for a person ends ${what}`, async () => {
      await firefox.open(place.portal);
      execFileSync("mkfifo", [place.wait]);
      try {
        const result = firefox.run(
          async ([port, options]) => {
            const { connect } = await import("/opcert.js");
            globalThis.stop = new AbortController();
            const { challenge } = await fetch("/challenge", { method: "POST" }).then((a) => a.json());
            const daemon = connect({ channel: "loopback", port });
            return daemon
              .approve(challenge, { signal: stop.signal, ...options })
              .then(String, ({ kind }) => kind);
          },
          [place.port, options],
        );
        const pid = await eventually("the prompt", () =>
          existsSync(place.asking) ? readFileSync(place.asking, "utf8").trim() : "",
        );
        if (kind === "cancelled") await firefox.run(async () => void globalThis.stop.abort());
        assert.equal(await result, kind);
        await eventually("the prompt's end", () => !existsSync(`/proc/${pid}`));
      } finally {
        rmSync(place.wait, { force: true });
        rmSync(place.asking, { force: true });
      }
    });
  }

  await check("a page of another origin is refused", async () => {
    await firefox.open(place.evil);
    const seen = refusals();
    assert.equal(await firefox.run(kind, place.port), "origin-refused");
    assert(seen().includes("origin-refused"));
  });

  for (const [who, origin, code] of [
    ["a listed page", place.portal, "fetch-refused"],
    ["another page", place.evil, "origin-refused"],
  ]) {
    await check(`a no-cors POST of ${who} is refused`, async () => {
      await firefox.open(origin);
      const seen = refusals();
      await firefox.run(async (port) => {
        await fetch(`https://localhost:${port}/v1/approvals`, {
          method: "POST",
          mode: "no-cors",
          credentials: "include",
          body: "{}",
        }).catch(() => "what the page sees does not matter");
      }, place.port);
      assert.deepEqual([...new Set(seen())], [code]);
    });
  }

  await check("a daemon that does not run is told apart", async () => {
    await firefox.open(place.portal);
    assert.equal(await firefox.run(kind, place.unused), "not-running");
  });
});

await using({ ...place.firefox.noClient, leave: ALLOW }, async (firefox) => {
  await check("a missing certificate is told apart", async () => {
    await firefox.open(place.portal);
    assert.equal(await firefox.run(kind, place.port), "no-client-certificate");
  });
});

await using({ ...place.firefox.untrusted, leave: ALLOW }, async (firefox) => {
  await check("an authority that is not trusted is told apart", async () => {
    await firefox.open(place.portal);
    assert.equal(await firefox.run(kind, place.port), "untrusted");
  });
});

await using({ ...place.firefox.noClient, leave: DENY }, async (firefox) => {
  await check("a page without leave reaches nothing", async () => {
    await firefox.open(place.portal);
    const seen = refusals();
    // Firefox tells a page nothing about leave, so it looks as if nothing were there.
    assert.equal(await firefox.run(kind, place.port), "not-running");
    assert.deepEqual(seen(), []);
    await firefox.click("look");
    await firefox.screenshot("firefox-without-leave");
  });
});

rmSync(place.firefox.full.profile, { recursive: true, force: true });
finish();
