// What the portal's pages do in the browser: look for the daemon, install, approve.
//
// Every word people read is in the page already, in their language; this only shows the part that
// holds. Nothing here writes HTML.

import { OpcertError, describeService, detect } from "./opcert.js";

const { daemon, csrf } = document.body.dataset;
const port = Number(new URL(daemon).port || 443);

/** How long to wait between two looks at an installation that an administrator must approve. */
const HELD_AGAIN = 5_000;
/** Longest wait for the portal's own service, in milliseconds. */
const SERVICE = 30_000;

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
      signal: AbortSignal.timeout(SERVICE),
    });
  } catch (error) {
    throw new Unreachable("the service cannot be reached", { cause: error });
  }
  const read = await answer.json().catch(() => ({ title: String(answer.status) }));
  if (answer.ok) return read;
  // The service sends whoever is not logged in to the log-in, says why, and back here afterwards.
  if (read.code === "session-ended") location.reload();
  throw new ServiceProblem(read);
}

/**
 * Which of the texts in the page stands for an error, what may be said beside it in the page's
 * language, and what in English.
 */
function explain(error) {
  if (error instanceof ServiceProblem) {
    const { title, action, wait, detail, code, request_id: request } = error.problem;
    const names = [code, request].filter(Boolean).join(", ");
    return [
      "service",
      [title, action, wait].filter(Boolean).join(" "),
      [detail, names && `[${names}]`].filter(Boolean).join(" "),
    ];
  }
  if (error instanceof Unreachable) return ["connection"];
  if (!(error instanceof OpcertError)) return ["other", "", String(error)];
  switch (error.kind) {
    case "permission-denied":
      return ["denied"];
    case "busy":
    case "timed-out":
      return ["busy"];
    case "refused": {
      const name = REFUSALS.get(error.code);
      return name ? [name, "", error.code] : ["other", "", `${error.code}: ${error.message}`];
    }
    default:
      return [error.kind];
  }
}

const REFUSALS = new Map([
  ["origin-refused", "origin"],
  ["consent-denied", "cancelled"],
  ["consent-timeout", "unanswered"],
  ["consent-unavailable", "nobody"],
  ["pin-needed", "pin"],
  ["pin-wrong", "pin"],
  ["pin-locked", "locked"],
  ["pin-final-try", "last-try"],
  ["token-absent", "absent"],
  ["certificate-missing", "no-operating-certificate"],
  ["certificate-expired", "no-operating-certificate"],
  ["certificate-revoked", "no-operating-certificate"],
  ["challenge-account", "no-operating-certificate"],
  ["challenge-issuer-unknown", "no-operating-certificate"],
  ["challenge-expired", "expired"],
  ["policy-refused", "refused"],
  ["not-permitted", "refused"],
  ["client-unknown", "stranger"],
  ["client-kind", "stranger"],
]);

/** Shows one of the prepared texts in `states`, and hides the others. */
function show(states, name, ...beside) {
  for (const entry of states.querySelectorAll("[data-show]")) {
    entry.hidden = entry.dataset.show !== name;
  }
  for (const [at, line] of ["[data-detail]", "[data-english]"].entries()) {
    const place = states.querySelector(line);
    place.textContent = beside[at] ?? "";
    place.hidden = place.textContent === "";
  }
}

function fail(place, error) {
  const failures = place.querySelector("[data-failures]");
  failures.hidden = false;
  show(failures, ...explain(error));
}

function clear(place) {
  place.querySelector("[data-failures]").hidden = true;
}

/**
 * Does one thing at a time: meanwhile no button of `place` can be pressed. `settle` says afterwards
 * which can; whoever pressed one has the focus there again, unless it went on.
 */
async function exclusively(place, work, settle) {
  const pressed = document.activeElement;
  const buttons = [...place.querySelectorAll("button")].filter((button) => !button.disabled);
  for (const button of buttons) button.disabled = true;
  try {
    await work();
  } finally {
    for (const button of buttons) button.disabled = false;
    settle();
    // Browsers take the focus from what is disabled.
    if (document.activeElement === document.body && place.contains(pressed)) pressed.focus();
  }
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

/** The prompt to install: Install is grey until the daemon is found. */
function gate(section) {
  const states = section.querySelector("[data-daemon-states]");
  const install = section.querySelector("[data-install]");
  const again = section.querySelector("[data-look-again]");
  let found;
  const settle = () => {
    install.disabled = found === undefined;
    again.hidden = found !== undefined;
  };
  const start = () => exclusively(section, async () => (found = await look(states)), settle);
  again.addEventListener("click", start);
  start();
}

/** The installation. */
function installer(steps) {
  const failures = steps.parentElement.querySelector("[data-failure]");
  const step = (name) => steps.querySelector(`[data-step="${name}"]`);
  const tokenForm = steps.querySelector("[data-token-form]");
  const codeForm = steps.querySelector("[data-code-form]");
  const progress = steps.querySelector("[data-progress]");
  const held = steps.querySelector("[data-held]");
  const again = steps.querySelector("[data-look-again]");
  let found;
  let usable = 0;
  let codeId;
  let ticket;
  let finished = false;

  /** Marks one of several as the present one, those before it as done. */
  const mark = (items, present) => {
    let passed = true;
    for (const item of items) {
      if (item === present) passed = false;
      item.dataset.state = item === present ? "now" : passed ? "done" : "";
      if (item === present) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    }
  };
  const reach = (name) => mark(steps.children, step(name));

  const busy = (work) =>
    exclusively(
      steps,
      async () => {
        clear(failures);
        try {
          await work();
        } catch (error) {
          fail(failures, error);
        }
      },
      () => {
        again.disabled = finished;
        tokenForm.querySelector("button[type=submit]").disabled = usable === 0;
        codeForm.querySelector("button[type=submit]").disabled = found === undefined;
      },
    );

  const start = () =>
    busy(async () => {
      reach("daemon");
      tokenForm.hidden = true;
      found = await look(step("daemon").querySelector("[data-daemon-states]"));
      if (!found) return;
      offer(await found.opcert.tokens());
      tokenForm.hidden = false;
      // A code that was sent before is still good.
      if (!codeForm.hidden) return reach("code");
      reach("token");
      tokenForm.querySelector("input:not([type=hidden]):not(:disabled)")?.focus();
    });

  /**
   * Fills in the choice of tokens; chosen is what was chosen before, or the first ready one. Those that the daemon cannot use
   * cannot be chosen; one that waits for its PIN can, as the daemon asks for it when it is needed.
   */
  function offer(tokens) {
    const list = tokenForm.querySelector("[data-tokens]");
    const template = steps.querySelector("[data-token-choice]");
    const before = list.querySelector("input:checked")?.value;
    list.replaceChildren();
    const inputs = [];
    for (const { id, uri, state, manufacturer, model } of tokens) {
      const choice = template.content.cloneNode(true);
      const input = choice.querySelector("input");
      input.value = uri;
      input.dataset.serial = id.serial;
      input.dataset.state = state;
      input.disabled = !["ready", "pin-needed", "released"].includes(state);
      inputs.push(input);
      choice.querySelector("[data-token-label]").textContent = id.label || uri;
      choice.querySelector("[data-token-facts]").textContent = [manufacturer, model, id.serial]
        .filter(Boolean)
        .join(" · ");
      for (const line of choice.querySelectorAll("[data-token-state]")) {
        line.hidden = line.dataset.tokenState !== state;
      }
      list.append(choice);
    }
    const good = inputs.filter((input) => !input.disabled);
    const first =
      good.find((input) => input.value === before) ??
      good.find((input) => input.dataset.state === "ready") ??
      good[0];
    if (first) first.checked = true;
    usable = good.length;
    tokenForm.querySelector("[data-no-tokens]").hidden = tokens.length > 0;
    tokenForm.querySelector("[data-none-usable]").hidden = tokens.length === 0 || usable > 0;
  }

  tokenForm.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(async () => {
      const chosen = tokenForm.querySelector("input[name=token]:checked");
      const sent = await ask("/certificates/install/code", {
        computer: found.status.computer,
        name: tokenForm.elements["computer-name"].value,
        token_serial: chosen.dataset.serial || null,
      });
      codeId = sent.code_id;
      ticket = undefined;
      progress.hidden = true;
      codeForm.querySelector("[data-sent-to]").textContent = sent.sent_to;
      codeForm.hidden = false;
      reach("code");
      codeForm.elements["code"].value = "";
      codeForm.elements["code"].focus();
    });
  });

  codeForm.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(async () => {
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
      } finally {
        held.hidden = true;
      }
    });
  });

  /** Shows how far it is, and says it to those who do not see it. */
  function part(name) {
    progress.hidden = false;
    const present = progress.querySelector(`[data-part="${name}"]`);
    mark(progress.querySelectorAll("[data-part]"), present);
    steps.querySelector("[data-progress-said]").textContent = present?.textContent ?? "";
  }

  async function install() {
    reach("install");
    const service = await describeService().catch((error) => {
      throw new Unreachable("the service cannot be reached", { cause: error });
    });
    await found.opcert.enrol({
      ticket: ticket.ticket,
      token: tokenForm.querySelector("input[name=token]:checked").value,
      keyType: tokenForm.elements["key-type"].value,
      service,
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
    finished = true;
    mark(steps.children, undefined);
    tokenForm.hidden = true;
    codeForm.hidden = true;
    const installed = steps.querySelector("[data-installed]");
    installed.hidden = false;
    installed.focus();
  }

  again.addEventListener("click", start);
  start();
}

/** The button that has an operation approved. */
function approver(section) {
  const states = section.querySelector("[data-daemon-states]");
  const button = section.querySelector("[data-approve]");
  const waiting = section.querySelector("[data-approving]");
  const path = `/operations/${section.dataset.operation}`;
  let found;

  const busy = (work) =>
    exclusively(
      section,
      async () => {
        clear(section);
        await work();
      },
      () => {
        button.disabled = found === undefined;
      },
    );
  const start = () => busy(async () => (found = await look(states)));

  button.addEventListener("click", () =>
    busy(async () => {
      waiting.hidden = false;
      try {
        const { challenge } = await ask(`${path}/challenge`, {});
        const { approval } = await found.opcert.approve(challenge);
        await ask(`${path}/approval`, { approval });
        location.assign(path);
      } catch (error) {
        fail(section, error);
      } finally {
        waiting.hidden = true;
      }
    }),
  );
  section.querySelector("[data-look-again]").addEventListener("click", start);
  start();
}

for (const section of document.querySelectorAll("[data-install-gate]")) gate(section);
for (const steps of document.querySelectorAll("[data-installer]")) installer(steps);
for (const section of document.querySelectorAll("[data-approver]")) approver(section);
