// The portal without a mouse: logging in, and every control of every page reached by Tab alone, in
// the order of the page, seen when it has the focus, and left again.
//
//   node keyboard.mjs DIR   see portal.mjs

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { audit, browser, logOut, scene } from "./support.mjs";

const { directory, portal } = scene(process.argv[2]);
const pictures = join(directory, "pictures");
mkdirSync(pictures, { recursive: true });

const context = await browser(directory, { viewport: { width: 1280, height: 900 } });
const page = await context.newPage();

/** Tab until the element has the focus. */
async function tabTo(selector) {
  for (let steps = 0; steps < 100; steps += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
  }
  assert.fail(`Tab does not lead to ${selector} on ${page.url()}`);
}

/** Types into fields, one after the other. */
async function type(fields) {
  for (const [field, text] of fields) {
    if (!(await page.evaluate((field) => document.activeElement.matches(field), field))) {
      await tabTo(field);
    }
    await page.keyboard.type(text);
  }
}

// Logging in: fields, then Enter. After a wrong password the focus is where it is to be typed again, and
// the field says what is wrong with it.
await page.goto(`${portal}/login`);
await type([
  ["#account", "acme"],
  ["#operator", "alice"],
  ["#password", "wrong horse"],
]);
await page.keyboard.press("Enter");
await page.locator("#problem[role=alert]").waitFor();
const field = await page.evaluate(() => {
  const { id, value, ariaInvalid } = document.activeElement;
  const described = document.activeElement.getAttribute("aria-describedby");
  return { id, value, ariaInvalid, described };
});
const expected = { id: "password", value: "", ariaInvalid: "true", described: "problem" };
assert.deepEqual(field, expected);
assert.equal(await page.inputValue("#operator"), "alice");
assert.deepEqual(await audit(page), []);
await page.screenshot({ path: join(pictures, "keyboard-wrong-password.png") });
await type([["#password", readFileSync(join(directory, "password"), "utf8").trim()]]);
await page.keyboard.press("Enter");
await page.locator("form[action='/logout']").waitFor();

// The first Tab offers to skip what every page begins with.
await page.goto(`${portal}/operations`);
await page.keyboard.press("Tab");
await page.screenshot({ path: join(pictures, "keyboard-skip.png") });
assert.equal(
  await page.evaluate(() => document.activeElement.getAttribute("href")),
  "#content",
  "the first link leads past the navigation",
);
await page.keyboard.press("Enter");
await page.keyboard.press("Tab");
assert.ok(
  await page.evaluate(() => document.querySelector("main").contains(document.activeElement)),
  "from there Tab goes on in the page itself",
);

for (const path of [
  "/",
  "/certificates",
  "/certificates/install",
  "/operations",
  "/operations/new",
  "/number",
  "/operators",
  "/security",
  "/installations",
  "/notices",
  "/trail",
]) {
  await page.goto(portal + path);
  await page.waitForFunction(() =>
    [...document.querySelectorAll("[data-show=looking]")].every((entry) => entry.hidden),
  );
  // There the page goes on by itself, to the first thing that is asked for.
  if (path === "/certificates/install") await page.locator("[data-token-form] :focus").waitFor();
  const unreached = await walk();
  assert.deepEqual(unreached, [], path);
}

/** Tabs from the top of the page, wherever the page put the focus, to its end; what was not reached, or not seen, in its turn. */
async function walk() {
  const controls = await page.evaluate(() => {
    const all = document.querySelectorAll("a[href], button, input, select, textarea, summary");
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
    // A group of radio buttons is one stop.
    const groups = new Set();
    globalThis.controls = [...all].filter((one) => {
      if (one.disabled || one.type === "hidden" || !one.checkVisibility()) return false;
      if (one.type !== "radio") return true;
      const first = !groups.has(one.name);
      groups.add(one.name);
      return first;
    });
    return globalThis.controls.map((one) => one.outerHTML.slice(0, 80));
  });
  const wrong = [];
  for (const [at, control] of controls.entries()) {
    await page.keyboard.press("Tab");
    const seen = await page.evaluate((at) => {
      const focused = document.activeElement;
      const expected = globalThis.controls[at];
      const same = focused === expected || (focused.type === "radio" && focused.name === expected.name);
      const { outlineStyle, outlineWidth } = getComputedStyle(focused);
      const box = focused.getBoundingClientRect();
      return {
        same,
        focused: focused.outerHTML.slice(0, 80),
        outlined: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2,
        inView: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
      };
    }, at);
    if (!seen.same) wrong.push(`not in its turn: ${control}, but ${seen.focused}`);
    else if (!seen.outlined) wrong.push(`no outline: ${control}`);
    else if (!seen.inView) wrong.push(`out of view: ${control}`);
    if (!seen.same) break;
  }
  return wrong;
}

await logOut(page);
await context.close();
console.log("keyboard: every control is reached, in its turn and seen");
