// The browser door and the extension in real Chromium.
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, mkdirSync, rmSync, writeFileSync, readFileSync, existsSync } from "node:fs";
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
async function launch({ home = place.homes.full, args = [], granted = true, profile } = {}) {
  const folder = profile ?? mkdtempSync(join(place.directory, "chromium-"));
  mkdirSync(join(folder, "Default"), { recursive: true });
  // As the policy AutoSelectCertificateForUrls, for a machine that nobody manages.
  writeFileSync(
    join(folder, "Default/Preferences"),
    JSON.stringify({
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
      assert.deepEqual([...new Set(seen())].filter((one) => one !== "host-refused"), [code]);
      await page.close();
    });
  }

  await check(`${mode}: a request that waits for a person can be taken back`, async () => {
    const page = await browser.open(place.portal);
    await waiting(page, { channel: "loopback", port: place.port });
    await page.close();
  });
  await check(`${mode}: a page hears that a person is asked`, async () => {
    const page = await browser.open(place.portal);
    await hears(page, { channel: "loopback", port: place.port });
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
  await waiting(page, where);
  await told("prompts", 1);
  await told("prompts", 0);
  const events = await page.evaluate(() => (listening.abort(), told));
  assert.deepEqual(
    events[0].data.tokens.map(({ state }) => state),
    ["ready"],
  );
  await told("ended");
}

/** Has the page ask for an approval, waits for the prompt, aborts, and waits for its end. */
async function waiting(page, where) {
  execFileSync("mkfifo", [place.wait]);
  try {
    const result = inPage(
      page,
      async (opcert, where) => {
        globalThis.stop = new AbortController();
        const challenge = await fetch("/challenge", { method: "POST" }).then((a) => a.json());
        return opcert.connect(where).approve(challenge.challenge, { signal: stop.signal });
      },
      where,
    );
    const pid = await eventually("the prompt", () =>
      existsSync(place.asking) ? readFileSync(place.asking, "utf8").trim() : "",
    );
    await page.evaluate(() => globalThis.stop.abort());
    assert.equal((await result).kind, "cancelled");
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
  });
  try {
    const page = await browser.open(place.portal);
    await page.waitForFunction(() => document.documentElement.dataset.opcertExtension);
    assert.match(await click(page, "look"), /answers by extension\.$/);
    assert.match(await click(page, "list"), /alice: active/);
    assert.match(await click(page, "approve"), new RegExp(`^Approved for ${place.portal} by `));
    await page.screenshot({ path: screenshot("chromium-extension") });
    await waiting(page, { channel: "extension" });
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

    const evil = await browser.open(place.evil);
    await evil.waitForFunction(() => document.documentElement.dataset.opcertExtension);
    const result = await inPage(evil, status, { channel: "extension" });
    assert.equal(result.code, "origin-refused", JSON.stringify(result));
  } finally {
    await browser.close();
  }
});

finish();
