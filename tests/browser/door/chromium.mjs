// The browser door and the extension in real Chromium.
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { readFileSync, readdirSync, existsSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { check, eventually, finish, PATIENCE, place, refusals, screenshot } from "./support.mjs";

const MODES = [
  ["as it is", []],
  // What the standard says, and Chromium will do one day: a preflight without a certificate.
  ["without certificates in preflights", ["--enable-features=OmitCorsClientCert"]],
];

/** Chromium with a profile of its own, or that of `home` where the extension's host is looked for. */
async function launch({ home = place.homes.full, args = [], granted = true, profile, languages, ...more } = {}) {
  const folder = profile ?? mkdtempSync(join(place.directory, "chromium-"));
  mkdirSync(join(folder, "Default"), { recursive: true });
  // As the policy AutoSelectCertificateForUrls, for a machine that nobody manages.
  writeFileSync(
    join(folder, "Default/Preferences"),
    JSON.stringify({
      ...(languages ? { intl: { accept_languages: languages, selected_languages: languages } } : {}),
      profile: {
        content_settings: {
          exceptions: {
            auto_select_certificate: {
              [`https://localhost:${place.port},*`]: { setting: { filters: [{}] } },
              [`https://rebound.test:${place.port},*`]: { setting: { filters: [{}] } },
            },
          },
        },
      },
    }),
  );
  const context = await chromium.launchPersistentContext(folder, {
    executablePath: "/usr/bin/chromium",
    headless: true,
    timeout: PATIENCE,
    viewport: { width: 900, height: 500 },
    env: { ...process.env, HOME: home },
    ...more,
    args: [
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      // As root only, in tests only.
      ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
      `--host-resolver-rules=MAP *.test 127.0.0.1`,
      ...args,
    ],
  });
  context.setDefaultTimeout(PATIENCE);
  if (granted) {
    // As a person who clicks "Allow".
    const session = await context.newCDPSession(context.pages()[0] ?? (await context.newPage()));
    for (const origin of [place.portal, place.evil]) {
      const permission = { name: "loopback-network" };
      await session.send("Browser.setPermission", { permission, setting: "granted", origin });
    }
  }
  return {
    context,
    async open(origin) {
      const page = await context.newPage();
      await page.goto(`${origin}/?port=${place.port}`);
      return page;
    },
    async close() {
      await context.close();
      if (!profile) rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Clicks a button of the page and gives what the page says then. */
async function click(page, id) {
  await page.click(`#${id}`);
  await page.waitForFunction(() => document.getElementById("said").textContent !== "…");
  return page.textContent("#said");
}

/** Runs `work` in the page with the module, and gives the value or what was wrong. */
function inPage(page, work, argument) {
  return page.evaluate(
    async ([source, argument]) => {
      const opcert = await import("/opcert.js");
      // Functions do not cross into the page; their text does.
      const run = new Function(`return ${source}`)();
      try {
        return { value: await run(opcert, argument) };
      } catch (error) {
        return { kind: error.kind, code: error.code, message: String(error.message) };
      }
    },
    [work.toString(), argument],
  );
}

const status = (opcert, options) => opcert.connect(options).status(options);
const there = { channel: "loopback", port: place.port };

/** How a request that waits for a person comes to its end, and what the page is told of it. */
const ENDS = {
  "when the page takes it back": {
    act: (page) => page.evaluate(() => globalThis.stop.abort()),
    kind: "cancelled",
  },
  "when its time is over": { timeout: 3_000, kind: "timed-out" },
  "when the page is left": { act: (page) => page.goto("about:blank"), kind: "gone" },
  "when the page is closed": { act: (page) => page.close(), kind: "gone" },
};

for (const [mode, args] of MODES) {
  const name = args.length === 0 ? "default" : "omit";
  const browser = await launch({ args });
  await check(`${mode}: the main job, by clicking`, async () => {
    const page = await browser.open(place.portal);
    assert.match(await click(page, "look"), /^opcert .* answers by loopback\.$/);
    await page.screenshot({ path: screenshot(`chromium-${name}-found`) });
    assert.equal(await click(page, "install"), "The certificate of alice is active.");
    await page.screenshot({ path: screenshot(`chromium-${name}-installed`) });
    assert.match(await click(page, "list"), /alice: active/);
    assert.equal(
      await click(page, "approve"),
      `Approved for ${place.portal} by client:${place.client}.`,
    );
    await page.screenshot({ path: screenshot(`chromium-${name}-approved`) });
    await page.close();
  });

  await check(`${mode}: a page of another origin is refused`, async () => {
    const page = await browser.open(place.evil);
    const seen = refusals();
    const result = await inPage(page, status, there);
    assert.equal(result.code, "origin-refused");
    assert(seen().includes("origin-refused"), "the daemon refused it itself");
    await click(page, "look");
    await page.screenshot({ path: screenshot(`chromium-${name}-other-origin`) });
    await page.close();
  });

  for (const [who, origin, code] of [
    ["a listed page", place.portal, "fetch-refused"],
    ["another page", place.evil, "origin-refused"],
  ]) {
    await check(`${mode}: a no-cors POST of ${who} is refused`, async () => {
      const page = await browser.open(origin);
      const seen = refusals();
      await page.evaluate(
        (port) =>
          fetch(`https://localhost:${port}/v1/approvals`, {
            method: "POST",
            mode: "no-cors",
            credentials: "include",
            body: "{}",
          }).catch(() => "what the page sees does not matter"),
        place.port,
      );
      assert.deepEqual([...new Set(seen())], [code]);
      await page.close();
    });

    await check(`${mode}: a form POST of ${who} is refused`, async () => {
      const page = await browser.open(origin);
      const seen = refusals();
      const answer = page.waitForResponse((response) => response.url().includes("/v1/approvals"));
      await page.evaluate((port) => {
        const form = document.createElement("form");
        form.method = "post";
        form.enctype = "text/plain";
        form.action = `https://localhost:${port}/v1/approvals`;
        document.body.append(form);
        form.submit();
      }, place.port);
      assert.equal((await answer).status(), 403);
      assert.deepEqual([...new Set(seen())], [code]);
      await page.close();
    });
  }

  for (const [what, end] of Object.entries(ENDS)) {
    await check(`${mode}: a request that waits for a person ends ${what}`, async () => {
      const page = await browser.open(place.portal);
      await waiting(page, there, end);
      if (!page.isClosed()) await page.close();
    });
  }
  await check(`${mode}: a page hears that a person is asked`, async () => {
    const page = await browser.open(place.portal);
    await hears(page, there);
    await page.close();
  });
  await browser.close();
}

/** Has the page listen to events while a person is asked, and until it wants no more. */
async function hears(page, where) {
  await inPage(
    page,
    async (opcert, where) => {
      globalThis.told = [];
      globalThis.listening = new AbortController();
      const events = opcert.connect(where).events({ signal: listening.signal });
      (async () => {
        for await (const { event, data } of events) told.push({ event, data });
        told.push({ event: "ended" });
      })();
    },
    where,
  );
  const told = (event, waiting) =>
    page.waitForFunction(
      ([event, waiting]) =>
        told.some((one) => one.event === event && one.data?.waiting === waiting),
      [event, waiting],
    );
  await told("snapshot");
  await waiting(page, where, ENDS["when the page takes it back"]);
  await told("prompts", 1);
  await told("prompts", 0);
  const events = await page.evaluate(() => (listening.abort(), told));
  assert.deepEqual(
    events[0].data.tokens.map(({ state }) => state),
    ["ready"],
  );
  await told("ended");
}

/** Has the page ask for an approval, waits for the prompt, ends it so, and waits for its end. */
async function waiting(page, where, { timeout, act, kind }) {
  execFileSync("mkfifo", [place.wait]);
  try {
    const result = inPage(
      page,
      async (opcert, [where, timeout]) => {
        globalThis.stop = new AbortController();
        const challenge = await fetch("/challenge", { method: "POST" }).then((a) => a.json());
        const options = { signal: stop.signal, ...(timeout ? { timeout } : {}) };
        return opcert.connect(where).approve(challenge.challenge, options);
      },
      [where, timeout],
    ).catch(() => ({ kind: "gone" }));
    const pid = await eventually("the prompt", () =>
      existsSync(place.asking) ? readFileSync(place.asking, "utf8").trim() : "",
    );
    await act?.(page);
    assert.equal((await result).kind, kind);
    await eventually("the prompt's end", () => !existsSync(`/proc/${pid}`));
  } finally {
    rmSync(place.wait, { force: true });
    rmSync(place.asking, { force: true });
  }
}

await check("what keeps a page from the daemon is told apart", async () => {
  for (const [what, options, where, kind] of [
    ["no client certificate", { home: place.homes.noClient }, there, "no-client-certificate"],
    ["an authority that is not trusted", { home: place.homes.untrusted }, there, "untrusted"],
    ["no leave", { granted: false }, there, "permission-denied"],
    ["no daemon", {}, { ...there, port: place.unused }, "not-running"],
  ]) {
    const browser = await launch(options);
    const page = await browser.open(place.portal);
    const result = await inPage(page, status, where);
    assert.equal(result.kind, kind, `${what}: ${JSON.stringify(result)}`);
    if (where === there) {
      await click(page, "look");
      await page.screenshot({ path: screenshot(`chromium-${kind}`) });
    }
    await browser.close();
  }
});

await check("a name that was rebound to this computer is refused", async () => {
  // As if the person had clicked the certificate's warning away.
  const browser = await launch({ args: ["--ignore-certificate-errors"] });
  const page = await browser.context.newPage();
  const seen = refusals();
  const answer = await page.goto(`https://rebound.test:${place.port}/v1/status`);
  assert.equal(answer.status(), 421);
  assert(seen().includes("host-refused"));
  await browser.close();
});

await check("the extension is chosen where it is there, and names the page itself", async () => {
  // Where Chromium looks for the host's manifest that `opcert browser setup` wrote.
  const profile = join(place.homes.extension, ".config/chromium");
  const extension = mkdtempSync(join(place.directory, "extension-"));
  cpSync(place.extension, extension, { recursive: true });
  const browser = await launch({
    home: place.homes.extension,
    profile,
    granted: false,
    args: [`--disable-extensions-except=${extension}`, `--load-extension=${extension}`],
    languages: "zh-CN,en",
    // A page that was left is kept and shown again, as it is where nobody drives the browser.
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
  });
  try {
    const page = await browser.open(place.portal);
    await page.waitForFunction(() => document.documentElement.dataset.opcertExtension);
    assert.match(await click(page, "look"), /answers by extension\.$/);
    assert.match(await click(page, "list"), /alice: active/);
    assert.match(await click(page, "approve"), new RegExp(`^Approved for ${place.portal} by `));
    await page.screenshot({ path: screenshot("chromium-extension") });
    for (const [what, end] of Object.entries(ENDS)) {
      const asking = await browser.open(place.portal);
      await waiting(asking, { channel: "extension" }, end).catch((error) => {
        throw new Error(what, { cause: error });
      });
      if (!asking.isClosed()) await asking.close();
    }
    await hears(page, { channel: "extension" });
    // A page cannot name another: what it says about its origin is not read.
    const claimed = await page.evaluate(
      (origin) =>
        new Promise((resolve) => {
          addEventListener("message", ({ data }) => {
            if (data.id === "claim" && data.opcert !== "request") resolve(data);
          });
          postMessage(
            { opcert: "request", id: "claim", origin, method: "GET", path: "/v1/status" },
            location.origin,
          );
        }),
      "https://other.example",
    );
    assert.equal(claimed.status, 200, JSON.stringify(claimed));

    // Nor does a frame get at it, by itself or through the page it is in.
    const framed = await page.evaluate(async () => {
      const heard = [];
      addEventListener("message", ({ data }) => heard.push(data?.id));
      const frame = document.createElement("iframe");
      frame.src = location.href;
      await new Promise((resolve) => {
        frame.onload = resolve;
        document.body.append(frame);
      });
      const inside = frame.contentWindow;
      inside.addEventListener("message", ({ data }) => heard.push(data?.id));
      const request = { opcert: "request", id: "framed", method: "GET", path: "/v1/status" };
      // As scripts of the frame send it: to their own window, and to the one around it.
      for (const target of ["window", "parent"]) {
        const script = inside.document.createElement("script");
        script.textContent = `${target}.postMessage(${JSON.stringify(request)}, location.origin)`;
        inside.document.body.append(script);
      }
      const { connect } = await import("/opcert.js");
      await connect({ channel: "extension" }).status();
      frame.remove();
      return { heard, marked: inside.document?.documentElement.dataset.opcertExtension };
    });
    assert.equal(framed.marked, undefined);
    // Its own words, and no answer.
    assert.equal(framed.heard.filter((id) => id === "framed").length, 2, JSON.stringify(framed));

    // Past the limit a page is told to wait, as the daemon itself would tell it.
    const crowd = await inPage(page, async (opcert) => {
      const stop = new AbortController();
      const daemon = opcert.connect({ channel: "extension" });
      const listeners = Array.from({ length: 16 }, () => daemon.events({ signal: stop.signal }));
      try {
        await Promise.all(listeners.map((listener) => listener.next()));
        return await daemon.status();
      } finally {
        stop.abort();
      }
    });
    assert.equal(crowd.kind, "busy", JSON.stringify(crowd));
    assert.match((await inPage(page, status, { channel: "extension" })).value.version, /^\d/);

    // The daemon's problems are in the browser's language.
    const chinese = await inPage(page, async (opcert) => {
      const daemon = opcert.connect({ channel: "extension" });
      return daemon.cancelEnrolment("none").catch(({ problem }) => problem);
    });
    assert.equal(chinese.value.code, "enrolment-unknown");
    assert.equal(chinese.value.title, "没有该安装流程");

    // Where the browser shows a page again that was left, it is told what became of its requests, and
    // goes on.
    await inPage(page, async (opcert) => {
      globalThis.told = [];
      const events = opcert.connect({ channel: "extension" }).events();
      await events.next();
      events.next().catch(({ kind }) => told.push(kind));
    });
    await page.goto(place.evil);
    await page.evaluate(() => void setTimeout(() => history.back()));
    await page.waitForURL(`${place.portal}/**`, { waitUntil: "commit" });
    await page.waitForFunction(() => globalThis.told?.length > 0);
    assert.deepEqual(await page.evaluate(() => told), ["not-running"]);
    assert.equal((await inPage(page, status, { channel: "extension" })).value.tokens, 1);

    const evil = await browser.open(place.evil);
    await evil.waitForFunction(() => document.documentElement.dataset.opcertExtension);
    const result = await inPage(evil, status, { channel: "extension" });
    assert.equal(result.code, "origin-refused", JSON.stringify(result));
    await evil.close();

    // A host goes when nobody needs it, and another comes when somebody does.
    assert.equal((await inPage(page, status, { channel: "extension" })).value.tokens, 1);
    await eventually("the other pages' hosts' end", () => hosts().length === 1);
    await eventually("the host's end", () => hosts().length === 0);
    assert.equal((await inPage(page, status, { channel: "extension" })).value.tokens, 1);
    await page.goto("about:blank");
    await eventually("the host's end", () => hosts().length === 0);
  } finally {
    await browser.close();
  }
});

/** Native-messaging hosts of this test that run. */
function hosts() {
  return readdirSync("/proc").filter((name) => {
    try {
      const words = readFileSync(`/proc/${name}/cmdline`, "utf8").split("\0");
      return words.includes("native-host") && words.some((word) => word.includes(place.directory));
    } catch {
      return false;
    }
  });
}

finish();
