// What the portal's pages do in the browser: look for the daemon, install, approve.
//
// Every word people read is in the page already, in their language; this only shows the part that
// holds. Nothing here writes HTML.

import { OpcertError, describeService, detect } from "./opcert.js";

const { daemon, csrf } = document.body.dataset;
const port = Number(new URL(daemon).port || 443);

/** How long to wait between two looks at an installation that an administrator must approve. */
const HELD_AGAIN = 5_000;

/** What the service answered instead of what was asked for; in the visitor's language. */
class ServiceProblem extends Error {
  constructor(problem) {
    super(problem.title);
    this.problem = problem;
  }
}

/** The service could not be reached. */
class Unreachable extends Error {}

/** Asks the portal's own service. */
async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": csrf },
      body: JSON.stringify(body),
    });
  } catch (error) {
    throw new Unreachable("the service cannot be reached", { cause: error });
  }
  const read = await answer.json().catch(() => ({ title: String(answer.status), action: "" }));
  if (answer.ok) return read;
  if (read.code === "session-ended") location.assign(`/login?next=${location.pathname}`);
  throw new ServiceProblem(read);
}

/** Which of the texts in the page stands for an error, and what may be said beside it. */
function explain(error) {
  if (error instanceof ServiceProblem) {
    const { title, action, detail } = error.problem;
    return ["service", [title, action, detail && `(${detail})`].filter(Boolean).join(" ")];
  }
  if (error instanceof Unreachable) return ["connection", ""];
  if (!(error instanceof OpcertError)) return ["other", String(error)];
  switch (error.kind) {
    case "permission-denied":
      return ["denied", ""];
    case "busy":
    case "timed-out":
      return ["busy", ""];
    case "refused":
      return refusal(error);
    default:
      return [error.kind, ""];
  }
}

const REFUSALS = {
  "origin-refused": "origin",
  "consent-denied": "cancelled",
  "consent-timeout": "cancelled",
  "consent-unavailable": "nobody",
  "pin-needed": "pin",
  "pin-wrong": "pin",
  "pin-locked": "pin",
  "pin-final-try": "pin",
  "certificate-missing": "no-operating-certificate",
  "certificate-expired": "no-operating-certificate",
  "certificate-revoked": "no-operating-certificate",
  "challenge-account": "no-operating-certificate",
  "challenge-issuer-unknown": "no-operating-certificate",
  "challenge-expired": "expired",
  "policy-refused": "refused",
  "not-permitted": "refused",
  "client-unknown": "refused",
};

function refusal(error) {
  const name = REFUSALS[error.code];
  return name ? [name, error.code] : ["other", `${error.code}: ${error.message}`];
}

/** Shows one of the prepared texts in `states`, and hides the others. */
function show(states, name, detail = "") {
  for (const entry of states.querySelectorAll("[data-show]")) {
    entry.hidden = entry.dataset.show !== name;
  }
  const line = states.querySelector("[data-detail]");
  line.textContent = detail;
  line.hidden = detail === "";
}

function fail(place, error) {
  const failures = place.querySelector("[data-failures]");
  failures.hidden = false;
  show(failures, ...explain(error));
}

function clear(place) {
  place.querySelector("[data-failures]").hidden = true;
}

/** Looks for the daemon and says in `states` what was found; the daemon, if it is ready. */
async function look(states) {
  show(states, "looking");
  const found = await detect({ port });
  if (found.ready) {
    show(states, "found");
    return found;
  }
  show(states, ...explain(found.error));
  return undefined;
}

/** The prompt on the list of certificates: Install is grey until the daemon is found. */
async function gate(section) {
  const found = await look(section.querySelector("[data-daemon-states]"));
  section.querySelector("[data-install]").disabled = found === undefined;
}

/** The installation. */
function installer(steps) {
  const place = steps.parentElement;
  const failures = place.querySelector("[data-failure]");
  const step = (name) => steps.querySelector(`[data-step="${name}"]`);
  const tokenForm = steps.querySelector("[data-token-form]");
  const codeForm = steps.querySelector("[data-code-form]");
  const progress = steps.querySelector("[data-progress]");
  let found;
  let codeId;
  let ticket;

  const reach = (name) => {
    let passed = true;
    for (const item of steps.children) {
      if (item.dataset.step === name) {
        item.dataset.state = "now";
        passed = false;
      } else {
        item.dataset.state = passed ? "done" : "";
      }
    }
  };

  const busy = async (form, work) => {
    clear(failures);
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      fail(failures, error);
    } finally {
      button.disabled = false;
    }
  };

  async function start() {
    clear(failures);
    reach("daemon");
    tokenForm.hidden = true;
    found = await look(step("daemon").querySelector("[data-daemon-states]"));
    if (!found) return;
    try {
      const tokens = await found.opcert.tokens();
      offer(tokens);
      tokenForm.hidden = false;
      reach("token");
      tokenForm.querySelector("input:not([type=hidden]):not(:disabled)")?.focus();
    } catch (error) {
      fail(failures, error);
    }
  }

  /** Fills in the choice of tokens; those that are not ready cannot be chosen. */
  function offer(tokens) {
    const list = tokenForm.querySelector("[data-tokens]");
    const template = steps.querySelector("[data-token-choice]");
    list.replaceChildren();
    let usable = 0;
    for (const token of tokens) {
      const choice = template.content.cloneNode(true);
      const input = choice.querySelector("input");
      const facts = attributes(token.uri);
      input.value = token.uri;
      input.dataset.serial = facts.serial ?? "";
      input.disabled = token.state !== "ready";
      if (!input.disabled && usable === 0) input.checked = true;
      usable += input.disabled ? 0 : 1;
      choice.querySelector("[data-token-label]").textContent = facts.token ?? token.uri;
      choice.querySelector("[data-token-facts]").textContent = [
        token.manufacturer,
        token.model,
        facts.serial,
        token.state === "ready" ? undefined : token.state,
      ]
        .filter(Boolean)
        .join(" · ");
      list.append(choice);
    }
    tokenForm.querySelector("[data-no-tokens]").hidden = usable > 0;
    tokenForm.querySelector("button[type=submit]").disabled = usable === 0;
  }

  tokenForm.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(tokenForm, async () => {
      const chosen = tokenForm.querySelector("input[name=token]:checked");
      const sent = await ask("/certificates/install/code", {
        computer: found.status.computer,
        name: tokenForm.elements["computer-name"].value,
        token_serial: chosen.dataset.serial || null,
      });
      codeId = sent.code_id;
      ticket = undefined;
      codeForm.querySelector("[data-sent-to]").textContent = sent.sent_to;
      codeForm.hidden = false;
      reach("code");
      codeForm.elements["code"].value = "";
      codeForm.elements["code"].focus();
    });
  });

  codeForm.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(codeForm, async () => {
      part("ticket");
      try {
        // A ticket that was won before is gone on with: the daemon resumes.
        ticket ??= await ask("/certificates/install/ticket", {
          code_id: codeId,
          code: codeForm.elements["code"].value,
        });
        await install();
      } catch (error) {
        progress.querySelector("[data-state=now]")?.setAttribute("data-state", "failed");
        throw error;
      }
    });
  });

  function part(name) {
    progress.hidden = false;
    let passed = true;
    for (const item of progress.querySelectorAll("[data-part]")) {
      if (item.dataset.part === name) passed = false;
      item.dataset.state = item.dataset.part === name ? "now" : passed ? "done" : "";
    }
  }

  async function install() {
    reach("install");
    const held = steps.querySelector("[data-held]");
    await found.opcert.enrol({
      ticket: ticket.ticket,
      token: tokenForm.querySelector("input[name=token]:checked").value,
      keyType: tokenForm.elements["key-type"].value,
      service: await describeService(),
      onProgress: (name) => part(name === "installed" ? "done" : name),
      certify: async (csr) => {
        for (;;) {
          try {
            const issued = await ask("/certificates/install/certificate", {
              ticket: ticket.ticket,
              csr,
            });
            held.hidden = true;
            part("write");
            return issued.certificates;
          } catch (error) {
            if (error.problem?.code !== "installation-held") throw error;
            held.hidden = false;
            await new Promise((resolve) => setTimeout(resolve, HELD_AGAIN));
          }
        }
      },
    });
    for (const item of steps.children) item.dataset.state = "done";
    tokenForm.hidden = true;
    codeForm.hidden = true;
    const installed = steps.querySelector("[data-installed]");
    installed.hidden = false;
    installed.focus();
  }

  steps.querySelector("[data-look-again]").addEventListener("click", start);
  start();
}

/** The attributes of a PKCS#11 URI (RFC 7512). */
function attributes(uri) {
  const facts = {};
  for (const pair of uri.replace(/^pkcs11:/, "").split(/[;?&]/)) {
    const [name, value] = pair.split("=");
    if (value !== undefined) facts[name] = decodeURIComponent(value);
  }
  return facts;
}

/** The button that has an operation approved. */
function approver(section) {
  const states = section.querySelector("[data-daemon-states]");
  const button = section.querySelector("[data-approve]");
  const waiting = section.querySelector("[data-approving]");
  const path = `/operations/${section.dataset.operation}`;
  let found;

  async function start() {
    clear(section);
    found = await look(states);
    button.disabled = found === undefined;
  }

  button.addEventListener("click", async () => {
    clear(section);
    button.disabled = true;
    waiting.hidden = false;
    try {
      const { challenge } = await ask(`${path}/challenge`, {});
      const { approval } = await found.opcert.approve(challenge);
      await ask(`${path}/approval`, { approval });
      location.assign(path);
    } catch (error) {
      fail(section, error);
      button.disabled = false;
    } finally {
      waiting.hidden = true;
    }
  });
  section.querySelector("[data-look-again]").addEventListener("click", start);
  start();
}

for (const section of document.querySelectorAll("[data-install-gate]")) gate(section);
for (const steps of document.querySelectorAll("[data-installer]")) installer(steps);
for (const section of document.querySelectorAll("[data-approver]")) approver(section);
