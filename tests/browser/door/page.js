// What docs/browser.md shows, as a page: look, install, list, approve.
import { certificatesOf, describeService, detect, OpcertError } from "/opcert.js";

const port = Number(new URLSearchParams(location.search).get("port") ?? 7444);
const button = (id) => document.getElementById(id);
let opcert;
let computer;

function say(text) {
  button("said").textContent = text;
}

/** Runs what a button does; shows what went wrong, and what to do about it. */
function on(id, work) {
  button(id).addEventListener("click", async () => {
    say("…");
    try {
      say(await work());
    } catch (error) {
      if (!(error instanceof OpcertError)) throw error;
      say(`${error.kind}: ${error.message} ${error.action}`);
    }
  });
}

async function ask(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

on("look", async () => {
  const found = await detect({ port });
  if (!found.ready) throw found.error;
  opcert = found.opcert;
  computer = found.status.computer;
  for (const id of ["install", "list", "approve"]) button(id).disabled = false;
  return `opcert ${found.status.version} answers by ${opcert.channel}.`;
});

on("install", async () => {
  const { ticket } = await ask("/ticket", { computer });
  const certificate = await opcert.enrol({
    ticket,
    service: await describeService(),
    certify: async (csr) => {
      const answer = await fetch("/.well-known/est/simpleenroll", {
        method: "POST",
        headers: { "content-type": "application/pkcs10" },
        body: csr,
      });
      return certificatesOf(await answer.text());
    },
  });
  return `The certificate of ${certificate.operator} is ${certificate.standing}.`;
});

on("list", async () => {
  const certificates = await opcert.list();
  return certificates.map(({ operator, standing }) => `${operator}: ${standing}`).join(", ");
});

on("approve", async () => {
  const { challenge } = await ask("/challenge", {});
  const { approval } = await opcert.approve(challenge);
  const verified = await ask("/approval", { challenge, approval });
  return `Approved for ${verified.origin} by ${verified.client}.`;
});
