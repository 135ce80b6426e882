// The published form of web/: what is in the package, that its types hold for a strict user, and
// that it loads.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const web = new URL("../../../web", import.meta.url).pathname;
const place = mkdtempSync(join(tmpdir(), "opcert-pack-"));
try {
  const [packed] = JSON.parse(
    execFileSync("npm", ["pack", "--json", "--pack-destination", place], {
      cwd: web,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit"],
    }).replace(/^[^[]*/, ""),
  );
  const files = packed.files.map(({ path }) => path).sort();
  assert.deepEqual(files, ["opcert.d.ts", "opcert.js", "package.json"]);

  const installed = join(place, "node_modules/opcert-web");
  mkdirSync(installed, { recursive: true });
  const tarball = join(place, packed.filename);
  execFileSync("tar", ["-xzf", tarball, "-C", installed, "--strip-components=1"]);
  writeFileSync(
    join(place, "user.ts"),
    `import { detect, describeService, Opcert, Refused } from "opcert-web";
import type { Certificate, Kind, Service, Token } from "opcert-web";
const found = await detect({ port: 7444, timeout: 1000 });
if (found.ready) {
  const opcert: Opcert = found.opcert;
  const list: Certificate[] = await opcert.list();
  const [token]: Token[] = await opcert.tokens();
  token?.id.serial satisfies string | undefined;
  // @ts-expect-error there is no such state
  if (token?.state === "unplugged") console.log(token.uri);
  const service: Service = await describeService({ timeout: 1000 });
  await opcert.enrol({ ticket: "t", service, certify: async (csr, { id }) => [csr, id] });
  const { approval }: { approval: string } = await opcert.approve("a.b.c", { cms: true });
  for await (const { event } of opcert.events()) event satisfies string;
  console.log(list, approval);
} else {
  const kind: Kind = found.error.kind;
  if (found.error instanceof Refused) found.error.problem.code satisfies string;
  // @ts-expect-error there is no such kind
  const wrong: Kind = "no-such-kind";
  console.log(kind, wrong);
}
`,
  );
  execFileSync(
    join(web, "node_modules/.bin/tsc"),
    ["--noEmit", "--strict", "--target", "es2022", "--module", "esnext"].concat(
      ["--moduleResolution", "bundler", "--lib", "es2022,dom", "--types", ""],
      join(place, "user.ts"),
    ),
    { cwd: place, stdio: ["ignore", "inherit", "inherit"] },
  );

  const opcert = await import(pathToFileURL(join(installed, "opcert.js")));
  // SEQUENCE { OID signedData, [0] { SEQUENCE { version, SET, SEQUENCE, [0] { two "certificates" } } } }
  const certificates = [0x30, 0x03, 0x02, 0x01, 0x07, 0x30, 0x03, 0x02, 0x01, 0x08];
  const element = (tag, content) => [tag, content.length, ...content];
  const signed = element(0x30, [
    ...element(0x02, [1]),
    ...element(0x31, []),
    ...element(0x30, []),
    ...element(0xa0, certificates),
    ...element(0x31, []),
  ]);
  const info = element(0x30, [...element(0x06, [0x2a]), ...element(0xa0, signed)]);
  const text = Buffer.from(info).toString("base64");
  assert.deepEqual(
    opcert.certificatesOf(`${text.slice(0, 8)}\r\n${text.slice(8)}`),
    [certificates.slice(0, 5), certificates.slice(5)].map((der) =>
      Buffer.from(der).toString("base64"),
    ),
  );
  // Cut off, nothing, no certificates, no base64, lengths of BER (X.690 section 8.1.3.6).
  const endless = Buffer.from([0x30, 0x80, ...info.slice(2), 0, 0]).toString("base64");
  for (const wrong of [text.slice(0, 12), "", "MAA=", '{"code":"forbidden"}', endless]) {
    assert.throws(() => opcert.certificatesOf(wrong), TypeError, wrong);
  }
  console.log("the package is as it should be");
} finally {
  rmSync(place, { recursive: true, force: true });
}
