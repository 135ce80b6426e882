// A browser as an operator has it, and where things are.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What axe-core finds wrong with the page as it is now. */
export async function audit(page) {
  // Through the debugger, which the content policy does not concern.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() =>
    window.axe.run(document, {
      runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }),
  );
  return violations.map(
    ({ id, help, nodes }) => `${id}: ${help} (${nodes.map(({ target }) => target).join(", ")})`,
  );
}

/** What tests/browser/portal wrote. */
export function scene(directory) {
  const text = readFileSync(join(directory, "scene.json"), "utf8");
  return { directory, ...JSON.parse(text) };
}

/**
 * Chromium with the authorities of portal and daemon trusted, which presents the one client
 * certificate it has to the daemon unasked, as a policy has it do on managed computers. `home` is
 * whose it is: "home" or, where the daemon's authority is not trusted, "stranger".
 */
export async function browser(directory, { home = "home", ...options } = {}) {
  const { daemon } = scene(directory);
  const profile = join(directory, `${home}-profile`);
  const settings = join(profile, "Default");
  mkdirSync(settings, { recursive: true });
  const setting = { [`${daemon},*`]: { setting: { filters: [{}] } } };
  const exceptions = { auto_select_certificate: setting };
  writeFileSync(
    join(settings, "Preferences"),
    JSON.stringify({ profile: { content_settings: { exceptions } } }),
  );
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
    env: { ...process.env, HOME: join(directory, home) },
    locale: "en-GB",
    ...options,
  });
  context.setDefaultTimeout(60_000);
  return context;
}

/** Logs in: carol is a business representative, the others are operators of acme. */
export async function logIn(page, portal, directory, who) {
  const representative = who === "carol";
  await page.goto(portal + (representative ? "/login/representative" : "/login"));
  if (!representative) await page.fill("#account", "acme");
  await page.fill("#operator", who);
  await page.fill("#password", readFileSync(join(directory, "password"), "utf8").trim());
  await page.locator("main button[type=submit]").click();
  await page.locator("form[action='/logout']").waitFor();
}

/** Logs out. */
export async function logOut(page) {
  await page.locator("form[action='/logout'] button").click();
  await page.getByText("You are logged out.").waitFor();
}
