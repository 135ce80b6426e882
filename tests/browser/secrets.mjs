// API secrets by clicking, with the real service and a daemon that asks for them: Alice sets the
// APIv3 secret with an SMS code and her password, lets the computer have it, and sees it arrive.
//
//   node secrets.mjs DIR   see portal.mjs; pictures of the steps go to DIR/pictures

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { browser, logIn, scene } from "./support.mjs";

const { directory, portal, work, programs } = scene(process.argv[2]);
const pictures = join(directory, "pictures");
mkdirSync(pictures, { recursive: true });
const SECRET = "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";

/** A command of the merchant's computer. */
function opcert(...words) {
  const env = { ...process.env, OPCERT_SOCKET: join(work, "computer/run/control.sock") };
  return execFileSync(join(programs, "opcert"), words, { env, encoding: "utf8" });
}
const address = ["--service", portal, "--service-ca", join(work, "service/state/server-ca.pem")];
const sync = () => JSON.parse(opcert("sync", ...address, "--json"));

opcert("wechatpay", "merchant", "add", "1900007291", "--service", portal, "--account", "acme");
assert.deepEqual(sync().secrets, []);

const context = await browser(directory, { viewport: { width: 1280, height: 900 } });
const page = await context.newPage();
const picture = (name) =>
  page.screenshot({ path: join(pictures, `secret-${name}.png`), fullPage: true });
await logIn(page, portal, directory, "alice");
await page.goto(`${portal}/security`);
await page.getByText("Waits to be let in").waitFor();
await page.getByRole("link", { name: "Set APIv3 secret" }).click();
await picture("1-code");
const texts = () => readFileSync(join(work, "service/output.log"), "utf8");
const before = texts().length;
await page.getByRole("button", { name: "Send SMS code" }).click();
await page.locator("#secret").waitFor();
const text = texts().slice(before);
assert.match(text, /Change the APIv3 secret of account acme/);
const code = /opcert code (\d{6})/.exec(text)[1];

// The browser stops a secret of the wrong length before it is sent.
const password = readFileSync(join(directory, "password"), "utf8").trim();
const submit = page.getByRole("button", { name: "Set secret" });
await page.fill("#secret", `${SECRET}x`);
await page.fill("#again", `${SECRET}x`);
await page.fill("#code", code);
await page.fill("#password", password);
await submit.click();
assert.ok(await page.locator("#secret:invalid").isVisible());

// Two that differ are told apart; nothing that was typed comes back.
await page.fill("#secret", SECRET);
await page.fill("#again", SECRET.toLowerCase());
await submit.click();
await page.getByText("The two fields differ.").waitFor();
assert.equal(await page.inputValue("#secret"), "");
await picture("2-differ");
await page.fill("#secret", SECRET);
await page.fill("#again", SECRET);
await page.fill("#code", code);
await page.fill("#password", password);
await picture("3-filled");
await submit.click();
await page.getByText("The secret is set.").waitFor();

// The computer is let in, with the password, and gets it.
assert.deepEqual(sync().secrets, []);
await page.locator("tbody a").first().click();
await picture("4-computer");
await page.fill("#password", password);
await page.getByRole("button", { name: "Let it have the secrets" }).click();
await page.getByText("The computer gets the secrets with its next").waitFor();
await page.getByText("Not fetched yet").waitFor();
const [taken] = sync().secrets;
assert.equal(taken.secret.kind, "apiv3");
await page.reload();
await page.getByText("Arrived").waitFor();
await picture("5-arrived");
assert.ok(!(await page.content()).includes(SECRET));
await context.close();
console.log("secrets: set, let in, arrived");
