// What the drivers share: the place the harness (tests/browser.rs) made, checks, and the daemon's
// own log, which says what a page cannot see.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";

/** Made by the harness: origins, ports, homes, paths. */
export const place = JSON.parse(process.env.OPCERT_BROWSER_TEST ?? "null");
assert(place, "run by `cargo test --test browser -- --ignored`");

/** No browser needs longer for anything here, even on a busy machine. */
export const PATIENCE = 60_000;

await mkdir(place.artefacts, { recursive: true });

export const screenshot = (name) => join(place.artefacts, `${name}.png`);

/** Waits until `probe` gives something; there is no event to wait for. */
export async function eventually(what, probe) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await probe();
    if (found) return found;
    assert(Date.now() < deadline, `${what} did not happen in time`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The codes that the daemon refused requests with since `mark()`. */
export function refusals() {
  const from = readFileSync(place.log, "utf8").length;
  return () =>
    [...readFileSync(place.log, "utf8").slice(from).matchAll(/refused.*? code=([a-z-]+)/g)].map(
      ([, code]) => code,
    );
}

let failed = 0;

/** One check; a failure does not keep the others from running. */
export async function check(name, run) {
  const begun = Date.now();
  try {
    await run();
    console.log(`ok    ${name} (${Date.now() - begun} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}`, error);
  }
}

export function finish() {
  console.log(failed === 0 ? "all passed" : `${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}
