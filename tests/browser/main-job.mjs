// The whole of the main job by clicking, with the real service, daemon and token: Bob installs an
// operating certificate with an SMS code, Alice enters a withdrawal, Bob approves it, and deletes
// his certificate at the end.
//
//   node main-job.mjs DIR   see portal.mjs; pictures of the steps go to DIR/pictures

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { audit, browser, logIn, logOut, scene } from "./support.mjs";

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
/** A picture of the page as it is, in which axe-core finds nothing. */
async function picture(name) {
  await page.screenshot({ path: join(pictures, `job-${name}.png`), fullPage: true });
  if (name !== "stuck") assert.deepEqual(await audit(page), [], name);
}
/** What the person at the computer does, until it is undone: `wait` or `deny`. */
const person = (how) => writeFileSync(join(directory, how), "");
const undone = (how) => rmSync(join(directory, how), { force: true });
/** Presses a button by the keyboard. */
async function press(button) {
  await button.focus();
  await page.keyboard.press("Enter");
}
const hasFocus = (locator) => locator.evaluate((one) => one === document.activeElement);

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
assert.equal(await page.locator("[data-token-state]:visible").count(), 0, "the token is ready");
await page.locator("[data-token-form] button[type=submit]").click();
await wait(page.locator("[data-step=code][aria-current=step] [data-code-form]"));
assert.ok(await hasFocus(page.locator("#code")));
const text = texts().slice(before);
assert.match(text, /Finance office 2/, "the text names the computer");
const code = /\d{6}/.exec(text.replace(/\+\d+/g, ""))[0];

// A wrong code is told apart, and whoever pressed the button by the keyboard is still there.
const submit = page.locator("[data-code-form] button[type=submit]");
await page.fill("#code", code === "000000" ? "000001" : "000000");
await press(submit);
await wait(page.locator("[data-failure] [data-show=service]"));
await wait(page.getByText("The SMS code is wrong."));
await wait(page.locator("[data-failure] [data-english]", { hasText: "sms-code-wrong" }));
await wait(page.locator("[data-code-form] button[type=submit]:enabled"));
assert.ok(await hasFocus(submit));
await picture("3-wrong-code");

// A second code so soon is refused, with the time to wait.
await page.locator("[data-token-form] button[type=submit]").click();
await wait(page.locator("[data-failure] [data-detail]", { hasText: /Try again in \d+ seconds\./ }));

// The right one is enough. While the person at the computer is asked, no button can be pressed; what
// goes on is said to those who do not see it.
person("wait");
await page.fill("#code", code);
await press(submit);
await wait(page.locator("[data-step=install][aria-current=step]"));
await wait(page.locator("[data-part=key][aria-current=step]"));
assert.equal(await page.locator("[data-installer] button:enabled:visible").count(), 0);
assert.match(await page.locator("[data-progress-said]").textContent(), /^Making a key/);
await picture("4-asked");

// Who declines is told that nothing was signed; with the same code it goes on.
person("deny");
undone("wait");
await wait(page.locator("[data-failure] [data-show=cancelled]"));
await wait(page.locator("[data-code-form] button[type=submit]:enabled"));
assert.ok(await hasFocus(submit));
await picture("4-declined");
undone("deny");
await press(submit);
await wait(page.locator("[data-installed]"));
assert.ok(await hasFocus(page.locator("[data-installed]")));
assert.ok(await page.locator("[data-installer] [data-look-again]").isDisabled());
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

// Whose session ended meanwhile is told so, and comes back here by logging in.
await wait(page.locator("[data-approve]:enabled"));
const [session] = (await context.cookies()).filter(({ name }) => name.endsWith("session"));
await context.addCookies([{ ...session, value: "ended" }]);
await page.locator("[data-approve]").click();
await wait(page.getByText("Your session is over. Log in again to go on."));
await picture("6-session-over");
await page.fill("#account", "acme");
await page.fill("#operator", "bob");
await page.fill("#password", readFileSync(join(directory, "password"), "utf8").trim());
await page.locator("main button[type=submit]").click();
await page.waitForURL(operation);

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
