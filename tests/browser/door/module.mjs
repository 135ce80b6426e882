// The module without a browser, over real TLS to a server that does what a daemon should not: breaks
// off, stalls, answers nonsense. Whatever it is, a page is told one of the kinds.
//
//   node module.mjs
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";

// Node.js reads the authorities it trusts when it starts, so a second one does the work.
if (process.argv[2] === undefined) {
  const made = mkdtempSync(join(tmpdir(), "opcert-module-"));
  execFileSync(
    "openssl",
    ["req", "-x509", "-subj", "/CN=localhost", "-days", "2", "-nodes"].concat(
      ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
      ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "server.pem"],
    ),
    { cwd: made, stdio: "ignore" },
  );
  const { status } = spawnSync(process.execPath, [import.meta.filename, made], {
    env: { ...process.env, NODE_EXTRA_CA_CERTS: join(made, "server.pem") },
    stdio: "inherit",
  });
  rmSync(made, { recursive: true, force: true });
  process.exit(status ?? 1);
}

const place = process.argv[2];
const opcert = await import(new URL("../../../web/opcert.js", import.meta.url));

/** What the server does next, given the answer it is to make. */
let behave;
const server = createServer(
  { key: readFileSync(join(place, "key.pem")), cert: readFileSync(join(place, "server.pem")) },
  (request, response) => behave(response, request),
);
await new Promise((resolve) => server.listen(0, "localhost", resolve));
const { port } = server.address();
const daemon = opcert.connect({ port });
assert.equal(daemon.channel, "loopback", "without a document there is no extension");

const problem = (status, body) => (response) => {
  response.writeHead(status, { "content-type": "application/problem+json" });
  response.end(JSON.stringify({ status, title: "t", detail: "d", action: "a", ...body }));
};
const stall = () => {};
const breakOff = (response) => {
  response.writeHead(200, { "content-length": "100" });
  response.write("{");
  setTimeout(() => response.socket.destroy(), 20);
};

async function failure(how, call) {
  behave = how;
  try {
    await call();
  } catch (error) {
    assert(error instanceof opcert.OpcertError, `${error.stack}`);
    assert(error.message && error.action, "it says what happened and what to do");
    return error;
  }
  assert.fail("it went well");
}

for (const [what, how, kind, code] of [
  ["an answer that breaks off", breakOff, "not-running"],
  ["a connection that breaks off", (response) => response.socket.destroy(), "not-running"],
  ["busy", problem(503, { code: "busy", retry_after: 7 }), "busy"],
  ["a limit", problem(429, { code: "limit-reached" }), "busy"],
  ["a refusal", problem(403, { code: "policy-refused" }), "refused", "policy-refused"],
  ["no certificate", problem(401, { code: "client-certificate-missing" }), "no-client-certificate"],
  ["no problem document", (response) => response.writeHead(500).end("<html>"), "refused", "unexpected"],
]) {
  const error = await failure(how, () => daemon.status());
  assert.deepEqual([error.kind, error.code], [kind, code], what);
  if (kind === "busy") assert.equal(error.retryAfter, what === "busy" ? 7 : 1);
}

// Time, and the page's own signal: before the call, while it waits, and beside a timeout.
assert.equal((await failure(stall, () => daemon.status({ timeout: 50 }))).kind, "timed-out");
let asked = 0;
const count = () => (asked += 1);
const gone = AbortSignal.abort();
assert.equal((await failure(count, () => daemon.status({ signal: gone }))).kind, "cancelled");
assert.equal(asked, 0, "what is taken back beforehand is not sent");
const stop = new AbortController();
const taken = failure(() => stop.abort(), () => daemon.status({ signal: stop.signal }));
assert.equal((await taken).kind, "cancelled");
const other = new AbortController();
const late = () => daemon.status({ signal: other.signal, timeout: 50 });
assert.equal((await failure(stall, late)).kind, "timed-out");
assert.deepEqual(await opcert.detect({ port, timeout: 50 }).then(({ ready, error }) => [ready, error.kind]), [
  false,
  "timed-out",
]);

// Events: cut anywhere, between the bytes of a character too; comments and fields of no use.
const events = Buffer.from(
  ': hello\n\nid: b-1\nevent: token\ndata: {"name":\ndata: "令牌"}\n\n' +
    "event: nothing\n\n__proto__: x\nretry: 5\ndata: no JSON\n\n",
);
for (let size = 1; size < 12; size += 1) {
  behave = async (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let at = 0; at < events.length; at += size) {
      response.write(events.subarray(at, at + size));
      if (size > 4) await new Promise((resolve) => setImmediate(resolve));
    }
    response.end();
  };
  const told = [];
  for await (const event of daemon.events()) told.push(event);
  assert.deepEqual(told, [
    { event: "token", data: { name: "令牌" }, id: "b-1" },
    { event: "message", data: "no JSON" },
  ]);
}
const listen = async (options) => {
  const told = [];
  for await (const { event } of daemon.events(options)) told.push(event);
  return told;
};
const cut = (response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write("data: 1\n\n");
  setTimeout(() => response.socket.destroy(), 20);
};
assert.equal((await failure(cut, listen)).kind, "not-running", "a stream that is cut is no end");
assert.equal((await failure(problem(503, { code: "busy" }), listen)).kind, "busy");
const enough = new AbortController();
behave = (response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write("data: 1\n\n");
  setTimeout(() => enough.abort(), 20);
};
assert.deepEqual(await listen({ signal: enough.signal }), ["message"], "an end that was asked for");
assert.deepEqual(await listen({ signal: gone }), []);
// Whoever leaves the loop leaves no stream open.
const closed = new Promise((resolve) => {
  behave = (response) => {
    response.on("close", resolve);
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write("data: 1\n\n");
  };
});
for await (const _ of daemon.events()) break;
await closed;

for (const wrong of [0, 65536, 1.5, NaN, "7444@elsewhere.example", null]) {
  assert.throws(() => opcert.connect({ port: wrong }), RangeError, String(wrong));
}

server.closeAllConnections();
server.close();
console.log("the module tells what went wrong");
