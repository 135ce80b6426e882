// The portal in a real browser: every page in both languages, light and dark, at desk and phone
// width. axe-core finds nothing on any of them, nothing overflows, nothing is fetched from
// elsewhere, the content policy is never broken; a picture of each is kept.
//
//   node portal.mjs DIR   DIR is the directory of a running `softhsm-config/demo --serve`; its
//                         `scene.json` says where things are. Pictures go to DIR/pictures.

import { mkdirSync } from "node:fs";
import { join } from "node:path";

import { audit, browser, logIn, scene } from "./support.mjs";

const { directory, portal } = scene(process.argv[2]);
const pictures = join(directory, "pictures");
mkdirSync(pictures, { recursive: true });

const wrong = [];

/** Pages by who sees them. */
const PAGES = {
  nobody: ["/login", "/login/representative", "/nowhere"],
  alice: [
    "/",
    "/certificates",
    "/certificates/install",
    "/operations",
    "/operations/new",
    "/number",
    "/security",
    "/security/api",
    "/security/apiv3?code=none",
    "/operators",
    "/installations",
    "/notices",
    "/trail",
  ],
  bob: ["/", "/certificates", "/operations"],
  carol: ["/requests", "/notices"],
};

const LOOKS = [
  { name: "en", language: "en", scheme: "light", width: 1280 },
  { name: "zh", language: "zh", scheme: "light", width: 1280 },
  { name: "en-dark", language: "en", scheme: "dark", width: 1280 },
  // The width at which a page must not scroll sideways (WCAG 2.2 criterion 1.4.10).
  { name: "en-phone", language: "en", scheme: "light", width: 320 },
  { name: "zh-phone-dark", language: "zh", scheme: "dark", width: 320 },
];

const context = await browser(directory);
const page = await context.newPage();
page.on("console", (message) => {
  if (message.type() === "error" && /policy|trusted/i.test(message.text())) {
    wrong.push(`${page.url()}: ${message.text()}`);
  }
});
page.on("request", (request) => {
  const { host, protocol } = new URL(request.url());
  const known = host === new URL(portal).host || host.startsWith("localhost:");
  if (!known && protocol.startsWith("http")) wrong.push(`${page.url()}: fetched ${request.url()}`);
});

for (const [who, paths] of Object.entries(PAGES)) {
  await context.clearCookies();
  if (who !== "nobody") await logIn(page, portal, directory, who);
  const links = [...paths];
  if (who === "alice") links.push(...(await details()));
  for (const look of LOOKS) await see(who, links, look);
}

/** Enters a withdrawal, and takes it back or leaves it to wait. */
async function order(what) {
  await page.goto(`${portal}/operations/new`);
  await page.selectOption("#kind", "withdrawal");
  await page.fill("#amount", "12.00");
  await page.fill("#payee", "Acme Ltd");
  await page.fill("#reference", `W-${what}`);
  await page.selectOption("#operator", "bob");
  await page.locator("main button[type=submit]").click();
  await page.getByText("The operation is created and waits for approval.").waitFor();
  if (what === "waits") return;
  await page.locator("form[action$='/cancel'] button").click();
  await page.getByText("The operation is cancelled.").waitFor();
}

/** Pages of certificates in force and deleted, of operations in every state that this scene brings
    about, and of a computer with secrets. */
async function details() {
  await order("waits");
  await order("taken-back");
  const found = new Set();
  for (const [list, start] of [
    ["/certificates?q=alice", "/certificates/"],
    ["/certificates?q=bob", "/certificates/"],
    ["/operations?state=created", "/operations/"],
    ["/operations?state=approved", "/operations/"],
    ["/operations?state=cancelled", "/operations/"],
    ["/security", "/security/computers/"],
  ]) {
    await page.goto(portal + list);
    const link = page.locator(`tbody a[href^="${start}"]`).first();
    if ((await link.count()) === 0) wrong.push(`there is nothing to look at on ${list}`);
    else found.add(await link.getAttribute("href"));
  }
  return found;
}

async function see(who, paths, look) {
  await page.setViewportSize({ width: look.width, height: 900 });
  await page.emulateMedia({ colorScheme: look.scheme, reducedMotion: "reduce" });
  await page.goto(portal + (who === "nobody" ? "/login" : paths[0]));
  if ((await page.locator("html").getAttribute("lang")) !== (look.language === "en" ? "en" : "zh-Hans")) {
    await page.locator("form[action='/language'] button").click();
  }
  for (const path of paths) {
    await page.goto(portal + path);
    await settled();
    const name = `${who}${path.replaceAll(/[/?=]/g, "_").slice(0, 40)}`.replace(/_$/, "_home");
    await page.screenshot({ path: join(pictures, `${name}.${look.name}.png`), fullPage: true });
    const overflow = await page.evaluate(
      () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
    );
    if (overflow > 0) wrong.push(`${who} ${path} ${look.name}: ${overflow} px too wide`);
    for (const finding of await audit(page)) wrong.push(`${who} ${path} ${look.name}: ${finding}`);
  }
}

/** Until the page has found out about the daemon. */
async function settled() {
  await page.waitForFunction(() =>
    [...document.querySelectorAll("[data-show=looking]")].every((entry) => entry.hidden),
  );
}

await context.close();
for (const line of wrong) console.error(line);
console.log(wrong.length === 0 ? "portal: nothing found" : `portal: ${wrong.length} findings`);
process.exitCode = wrong.length === 0 ? 0 : 1;
