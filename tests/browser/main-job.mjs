// The whole of the main job by clicking, with the real service, daemon and token: Bob installs an
// operating certificate with an SMS code, Alice enters a withdrawal, Bob approves it, and deletes
// his certificate at the end.
//
//   node main-job.mjs DIR   see portal.mjs; pictures of the steps go to DIR/pictures

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { browser, logIn, logOut, scene } from "./support.mjs";

const { directory, portal, work, daemon } = scene(process.argv[2]);
const pictures = join(directory, "pictures");
mkdirSync(pictures, { recursive: true });

const context = await browser(directory, { viewport: { width: 1280, height: 900 } });
const page = await context.newPage();
const broken = [];
page.on("console", (message) => {
  if (message.type() === "error") broken.push(`${page.url()}: ${message.text()}`);
});
page.on("crash", () => broken.push("the page crashed"));
/** Waits for a text or element; where it does not come, says what the page shows instead. */
async function wait(locator) {
  try {
    await locator.waitFor();
  } catch (error) {
    await picture("stuck");
    throw new Error(`${error.message}\n${await page.locator("main").innerText()}`);
  }
}
const picture = (name) =>
  page.screenshot({ path: join(pictures, `job-${name}.png`), fullPage: true });

// A browser that does not trust the daemon's certificate is told so, with the remedy.
const stranger = await browser(directory, { home: "stranger" });
const untrusted = await stranger.newPage();
await logIn(untrusted, portal, directory, "bob");
await untrusted.goto(`${portal}/certificates`);
await untrusted.locator("[data-show=untrusted]").waitFor();
assert.ok(await untrusted.locator("[data-install]").isDisabled());
await untrusted.screenshot({ path: join(pictures, "job-0-untrusted.png"), fullPage: true });
await stranger.close();

// The prompt, and Install once the daemon is found.
await logIn(page, portal, directory, "bob");
await page.goto(`${portal}/certificates`);
await wait(page.getByText("You have not installed an operating certificate"));
const install = page.locator("[data-install]");
await wait(page.locator("[data-install]:enabled"));
await picture("1-prompt");
await install.click();

// Token, computer, code.
await wait(page.locator("[data-token-form]"));
await page.fill("#computer-name", "Finance office 2");
await picture("2-token");
const texts = () => readFileSync(join(work, "service/output.log"), "utf8");
const before = texts().length;
await page.locator("[data-token-form] button[type=submit]").click();
await wait(page.locator("[data-code-form]"));
const text = texts().slice(before);
assert.match(text, /Finance office 2/, "the text names the computer");
const code = /\d{6}/.exec(text.replace(/\+\d+/g, ""))[0];

// A wrong code is told apart; the right one installs.
await page.fill("#code", code === "000000" ? "000001" : "000000");
await page.locator("[data-code-form] button[type=submit]").click();
await wait(page.locator("[data-failure] [data-show=service]"));
await wait(page.getByText("The SMS code is wrong."));
await picture("3-wrong-code");
await page.fill("#code", code);
await page.locator("[data-code-form] button[type=submit]").click();
await wait(page.locator("[data-installed]"));
await picture("4-installed");
await page.locator("[data-installed] a").click();
const row = page.locator("tbody tr").filter({ hasText: "bob" });
await wait(row.getByText("In force"));
await picture("5-list");
assert.equal(await page.getByText("You have not installed").count(), 0);
await logOut(page);

// Alice enters a withdrawal; she is its maker, so she is not offered to approve it.
await logIn(page, portal, directory, "alice");
await page.goto(`${portal}/operations/new`);
await page.selectOption("#kind", "withdrawal");
await page.fill("#amount", "1,234.50");
await page.fill("#payee", "Acme Ltd, ICBC 6222 **** 1234");
await page.fill("#reference", "W-2026-0042");
await page.selectOption("#operator", "bob");
await page.locator("main button[type=submit]").click();
await wait(page.getByText("The operation is created and waits for approval."));
assert.equal(await page.locator("[data-approver]").count(), 0);
const operation = page.url();
await logOut(page);

// Bob approves it with the daemon.
await logIn(page, portal, directory, "bob");
await page.goto(operation);
await wait(page.getByText("CNY 1,234.50"));
await page.locator("[data-approve]:enabled").click();
await wait(page.getByText("The operation is approved."));
await wait(page.locator(".badge.good", { hasText: "Approved" }));
await picture("6-approved");

// And deletes his certificate, which approves nothing more.
await page.goto(`${portal}/certificates`);
await row.locator("a.mono").click();
await page.check("input[name=sure]");
await page.locator("form[action$='/delete'] button").click();
await wait(page.getByText("The certificate is deleted."));
await wait(row.getByText("Deleted"));
await wait(page.getByText("You have not installed an operating certificate"));
await picture("7-deleted");

// The browser says nothing of a broken policy; a refused answer of the service it does log.
const unexpected = broken.filter((line) => !/status of 4\d\d/.test(line));
assert.deepEqual(unexpected, []);
await context.close();
console.log(`main job: done, with the daemon at ${daemon}`);
