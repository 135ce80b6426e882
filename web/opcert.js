/**
 * Approve with an operating certificate from a web page.
 *
 * The private key is on a hardware token of this computer; the daemon `opcertd` uses it, and
 * nothing here ever sees it. A page reaches the daemon by one of two channels, and this module
 * chooses:
 *
 * - **extension**: the opcert browser extension and native messaging. Used where it is installed,
 *   as it needs no certificate in the browser and no leave to look at the local network.
 * - **loopback**: `fetch` to `https://localhost:7444`, with the client certificate that
 *   `opcert browser setup` put into the browser.
 *
 * What goes wrong at the daemon, or on the way to it, is an {@link OpcertError}, told apart by `kind`.
 * Its texts are English, those of a {@link Problem} in the browser's language; a page in another one
 * has its own words for each `kind`.
 *
 * @module
 */

/** The port of the daemon's browser door, unless its configuration says otherwise. */
export const PORT = 7444;

/** Longest wait for an answer that nobody has to be asked for, in milliseconds. */
const SOON = 10_000;
/** Longest wait where a person is asked: twice what the daemon waits for one by default, and some. */
const PERSON = 150_000;
/** Longest wait where a person is asked and a token makes a key. */
const KEY = 300_000;
/** Longest wait for one answer of the look at what is wrong. */
const PROBE = 3_000;

/**
 * What went wrong.
 *
 * | kind | what happened | who can mend it |
 * | --- | --- | --- |
 * | `not-running` | nothing answers | the person: start the daemon |
 * | `untrusted` | the browser does not trust the daemon's certificate | `opcert browser setup` |
 * | `no-client-certificate` | the browser has no certificate for the daemon | `opcert browser setup`, then start the browser again |
 * | `permission-denied` | the person or a policy keeps this page from the local network | the person, in the page's settings |
 * | `busy` | other requests wait; see `retryAfter` | wait |
 * | `refused` | the daemon says no; see `problem` | as `problem.action` says |
 * | `cancelled` | the page's own signal was aborted | nobody |
 * | `timed-out` | no answer in time | try again |
 * @typedef {"not-running" | "untrusted" | "no-client-certificate" | "permission-denied" | "busy" | "refused" | "cancelled" | "timed-out"} Kind
 */

/**
 * The daemon's own words (RFC 9457).
 * @typedef {object} Problem
 * @property {string} code A stable code, such as `consent-denied`.
 * @property {string} title The error in a few words, in the browser's language.
 * @property {number} status The HTTP status.
 * @property {string} detail What happened, a sentence; always English.
 * @property {string} action What to do, a sentence, in the browser's language.
 * @property {string} [request_id] Names the request in the daemon's log.
 * @property {string} [rule] The policy rule that refused.
 * @property {number} [retry_after] Seconds after which trying again makes sense.
 */

/** Any failure of this module. `message` says what happened, `action` what to do. */
export class OpcertError extends Error {
  /**
   * @param {Kind} kind
   * @param {string} message
   * @param {string} action
   * @param {unknown} [cause]
   */
  constructor(kind, message, action, cause) {
    super(message, { cause });
    this.name = new.target.name;
    /** @readonly */
    this.kind = kind;
    /** @readonly */
    this.action = action;
  }
}

/**
 * Nothing answers: the daemon does not run, runs without a door for pages, or ended before its answer
 * was there. In a browser that does not tell pages about leave to reach this computer (Firefox), it
 * may be that too.
 */
export class NotRunning extends OpcertError {
  /** @param {unknown} [cause] */
  constructor(cause) {
    super(
      "not-running",
      "The opcert daemon does not answer on this computer.",
      "Start it, and let this page reach programs on this computer if the browser asks; `opcert browser doctor` says what is missing.",
      cause,
    );
  }
}

/** The daemon runs, and the browser does not trust its certificate. */
export class Untrusted extends OpcertError {
  /** @param {unknown} [cause] */
  constructor(cause) {
    super(
      "untrusted",
      "The browser does not trust the certificate of the opcert daemon.",
      "Run `opcert browser setup`, then start the browser again.",
      cause,
    );
  }
}

/** The browser presented no certificate, so the daemon does not know it. */
export class NoClientCertificate extends OpcertError {
  /** @param {Problem} problem */
  constructor(problem) {
    super(
      "no-client-certificate",
      "The browser has no certificate for the opcert daemon.",
      "Run `opcert browser setup`, then close every window of the browser and start it again.",
    );
    /** @readonly */
    this.problem = problem;
  }
}

/** The page may not reach this computer's own network: the person or a policy said no. */
export class PermissionDenied extends OpcertError {
  /** @param {unknown} [cause] */
  constructor(cause) {
    super(
      "permission-denied",
      "This page may not reach programs on this computer.",
      "Allow it in the page's settings, beside the address bar, then load the page again.",
      cause,
    );
  }
}

/** Too much is going on; trying again makes sense. */
export class Busy extends OpcertError {
  /** @param {Problem} problem */
  constructor(problem) {
    super("busy", problem.detail, problem.action);
    /** @readonly */
    this.problem = problem;
    /**
     * Seconds to wait.
     * @readonly
     */
    this.retryAfter = problem.retry_after ?? 1;
  }
}

/** The daemon says no. `problem.code` says which no. */
export class Refused extends OpcertError {
  /** @param {Problem} problem */
  constructor(problem) {
    super("refused", problem.detail, problem.action);
    /** @readonly */
    this.problem = problem;
    /** @readonly */
    this.code = problem.code;
  }

  /** Whether a person at this computer declined, rather than a rule. */
  get declined() {
    return this.code === "consent-denied";
  }
}

/** The page's own signal was aborted; a question on the screen is taken back. */
export class Cancelled extends OpcertError {
  /** @param {unknown} [cause] */
  constructor(cause) {
    super("cancelled", "The request was cancelled.", "Try again if it is still wanted.", cause);
  }
}

/** No answer in time. The daemon gives up too: what was not answered is not approved later. */
export class TimedOut extends OpcertError {
  /** @param {number} milliseconds */
  constructor(milliseconds) {
    super(
      "timed-out",
      `No answer came within ${milliseconds / 1000} seconds.`,
      "Try again; look for a question of the browser or of opcert that waits for an answer.",
    );
  }
}

/**
 * Options of every call.
 * @typedef {object} Options
 * @property {AbortSignal} [signal] Takes the request back.
 * @property {number} [timeout] Milliseconds; each call has a default that fits it.
 */

/**
 * @typedef {object} Place
 * @property {"auto" | "extension" | "loopback"} [channel] How to reach the daemon; chosen by default.
 * @property {number} [port] The port of the browser door; {@link PORT} by default.
 */

/**
 * @typedef {object} Status
 * @property {string} version Version of the daemon.
 * @property {string} computer This computer's id.
 * @property {number} tokens Tokens that are present.
 * @property {number} certificates Installed operating certificates.
 */

/**
 * @typedef {object} Token
 * @property {{ module: string, label: string, serial: string }} id The token that was found; while
 *   it is absent, what the configuration says of it.
 * @property {string} uri The configured PKCS#11 URI (RFC 7512), for {@link Opcert.enrol}. It need not
 *   name label and serial number: those of the token are in `id`.
 * @property {"absent" | "locked-out" | "pin-needed" | "final-try" | "ready" | "released" | "degraded" | "respawning" | "down"} state
 *   Whether it can be used. One that needs its PIN, or was released, may be asked for all the same: the
 *   daemon asks the person for the PIN, or refuses with `pin-needed`.
 * @property {string} manufacturer Empty while it is absent, like the next two.
 * @property {string} model
 * @property {string} firmware
 * @property {string} [reason] Why it is not ready, for people.
 * @property {string[]} generates The kinds of key it can make, as `keyType` of {@link Enrol}.
 */

/**
 * An operating certificate.
 * @typedef {object} Certificate
 * @property {string} fingerprint SHA-256, hexadecimal.
 * @property {string} serial Serial number, hexadecimal.
 * @property {string} account
 * @property {string} operator
 * @property {string} computer
 * @property {string} service Origin of the account service.
 * @property {string} key PKCS#11 URI of the key.
 * @property {string} algorithm JOSE algorithm.
 * @property {string} standing `active`, `not-yet-valid`, `expired`, `revoked` or `superseded`.
 * @property {string} not_before RFC 3339.
 * @property {string} not_after RFC 3339.
 * @property {string} installed RFC 3339.
 * @property {string} certificate Base64 of DER.
 */

/**
 * An approval.
 * @typedef {object} Approval
 * @property {string} approval Compact JWS, for the account service.
 * @property {string} [cms] Detached CMS signature, base64 of DER, where it was asked for.
 * @property {string} jti
 * @property {string} challenge_jti
 * @property {{ language: string, title: string, lines: { label: string, value: string }[] }} [shown]
 *   What it approves, in words, in the browser's language.
 */

/**
 * An enrolment under way.
 * @typedef {object} Enrolment
 * @property {string} id
 * @property {string} state `generating` or `requested`.
 * @property {string} account
 * @property {string} operator
 * @property {string} computer
 * @property {string} service
 * @property {string} token PKCS#11 URI.
 * @property {string} begun RFC 3339.
 * @property {string} csr PKCS#10, base64 of DER.
 */

/**
 * The account service, as {@link describeService} finds it.
 * @typedef {object} Service
 * @property {string} origin
 * @property {{ keys: object[] }} keys The JWK set its challenges are signed by.
 * @property {string[]} ca Its issuing authorities, base64 of DER.
 */

/**
 * @typedef {object} Enrol
 * @property {string} ticket What the right SMS code was exchanged for.
 * @property {string} [keyType] `p256` by default; or `rsa2048`, `rsa3072`, `p384`, `ed25519`.
 * @property {string} [token] PKCS#11 URI; may be left out where there is one token.
 * @property {Service} service
 * @property {(csr: string, enrolment: Enrolment) => Promise<string[]>} certify Has the account
 *   service certify the request (PKCS#10, base64 of DER); gives the certificate and its issuers,
 *   each base64 of DER. {@link certificatesOf} reads an EST answer.
 * @property {(step: "key" | "certificate" | "installed") => void} [onProgress] Told before the key
 *   is made, before it is certified, and at the end.
 */

/**
 * What {@link detect} found.
 * @typedef {{ ready: true, opcert: Opcert, status: Status } | { ready: false, error: OpcertError }} Detected
 */

/**
 * Looks for the daemon. What keeps the page from it is in the result, not thrown.
 *
 * The first look may have the browser ask the person whether the page may reach programs on this
 * computer, so call it when the person has been told why.
 * @param {Place & Options} [options]
 * @returns {Promise<Detected>}
 */
export async function detect(options = {}) {
  try {
    const opcert = connect(options);
    return { ready: true, opcert, status: await opcert.status(options) };
  } catch (error) {
    if (error instanceof OpcertError) return { ready: false, error };
    throw error;
  }
}

/**
 * Whether the browser would let this page reach programs on this computer: `prompt` where it asks
 * the person first, `unknown` where it does not tell.
 * @returns {Promise<"granted" | "denied" | "prompt" | "unknown">}
 */
export async function permission() {
  // The first is the name of today, the second that of the first browsers that asked.
  for (const name of ["loopback-network", "local-network-access"]) {
    try {
      const status = await navigator.permissions.query({
        name: /** @type {PermissionName} */ (name),
      });
      return status.state;
    } catch {
      // This browser does not know the name.
    }
  }
  return "unknown";
}

/**
 * A handle on the daemon. Nothing is sent yet.
 * @param {Place} [place]
 * @returns {Opcert}
 * @throws {RangeError} where `port` is none.
 */
export function connect(place = {}) {
  const { channel = "auto", port = PORT } = place;
  // What is no number could name another host than this one.
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new RangeError(`${port} is no port`);
  }
  const extension = channel === "extension" || (channel === "auto" && hasExtension());
  return new Opcert(extension ? new ExtensionChannel() : new LoopbackChannel(port));
}

/** The daemon of this computer, as {@link connect} or {@link detect} gives it. */
export class Opcert {
  #channel;

  /** @param {ExtensionChannel | LoopbackChannel} channel */
  constructor(channel) {
    this.#channel = channel;
  }

  /**
   * How the daemon is reached.
   * @returns {"extension" | "loopback"}
   */
  get channel() {
    return this.#channel.name;
  }

  /**
   * @param {Options} [options]
   * @returns {Promise<Status>}
   */
  async status(options) {
    return this.#call("GET", "/v1/status", undefined, SOON, options);
  }

  /**
   * The tokens of this computer.
   * @param {Options} [options]
   * @returns {Promise<Token[]>}
   */
  async tokens(options) {
    return (await this.#call("GET", "/v1/tokens", undefined, SOON, options)).tokens;
  }

  /**
   * The installed operating certificates.
   * @param {Options} [options]
   * @returns {Promise<Certificate[]>}
   */
  async list(options) {
    return (await this.#call("GET", "/v1/certificates", undefined, SOON, options)).certificates;
  }

  /**
   * Has a challenge of the account service approved. The daemon shows the operation to the person
   * at this computer where its policy says so.
   *
   * The same challenge again gives the same approval, so a call that was cut off may be repeated.
   * @param {string} challenge Compact JWS, unchanged.
   * @param {Options & { cms?: boolean }} [options]
   * @returns {Promise<Approval>}
   */
  async approve(challenge, options = {}) {
    const body = { challenge, cms: options.cms ?? false };
    return this.#call("POST", "/v1/approvals", body, PERSON, options);
  }

  /**
   * Installs an operating certificate: the token makes a key, the account service certifies it, the
   * daemon writes the certificate to the token. The person at this computer is asked first.
   *
   * The same ticket again goes on where a call was cut off.
   * @param {Enrol} enrol
   * @param {Options} [options] The timeout is for each step at the daemon.
   * @returns {Promise<Certificate>}
   */
  async enrol(enrol, options = {}) {
    const { ticket, token, service, certify, onProgress } = enrol;
    onProgress?.("key");
    /** @type {Enrolment} */
    const enrolment = await this.#call(
      "POST",
      "/v1/enrolments",
      { ticket, key_type: enrol.keyType ?? "p256", service, ...(token ? { token } : {}) },
      KEY,
      options,
    );
    onProgress?.("certificate");
    const certificates = await certify(enrolment.csr, enrolment);
    const installed = await this.#call(
      "PUT",
      `/v1/enrolments/${encodeURIComponent(enrolment.id)}/certificate`,
      { certificates },
      KEY,
      options,
    );
    onProgress?.("installed");
    return installed;
  }

  /**
   * Enrolments of this page's service that have no certificate yet.
   * @param {Options} [options]
   * @returns {Promise<Enrolment[]>}
   */
  async enrolments(options) {
    return (await this.#call("GET", "/v1/enrolments", undefined, SOON, options)).enrolments;
  }

  /**
   * Ends an enrolment; its key goes from the token.
   * @param {string} id
   * @param {Options} [options]
   * @returns {Promise<void>}
   */
  async cancelEnrolment(id, options) {
    const path = `/v1/enrolments/${encodeURIComponent(id)}`;
    await this.#call("DELETE", path, undefined, SOON, options);
  }

  /**
   * What happens at the daemon: tokens that come and go, certificates, prompts. The first event is
   * `snapshot`. Ends when the signal is aborted, and after `lagged` or `stopping`; a lost connection is
   * an error. Calling again begins with a snapshot again.
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {AsyncGenerator<{ event: string, data: any, id?: string }, void, void>}
   */
  async *events(options = {}) {
    try {
      yield* parseEvents(this.#channel.stream("/v1/events", options.signal));
    } catch (error) {
      if (!(error instanceof Cancelled)) throw error;
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {object | undefined} body
   * @param {number} longest
   * @param {Options} [options]
   * @returns {Promise<any>}
   */
  async #call(method, path, body, longest, options) {
    return within(longest, options, async (signal) =>
      read(await this.#channel.send({ method, path, body, signal })),
    );
  }
}

/**
 * Does `work` unless the page takes it back, or for no longer than its time.
 * @template T
 * @param {number} longest Milliseconds, unless the options say otherwise.
 * @param {Options | undefined} options
 * @param {(signal: AbortSignal) => Promise<T>} work
 * @returns {Promise<T>}
 */
async function within(longest, options, work) {
  const timeout = options?.timeout ?? longest;
  const late = AbortSignal.timeout(timeout);
  const signal = options?.signal ? AbortSignal.any([late, options.signal]) : late;
  try {
    signal.throwIfAborted();
    return await work(signal);
  } catch (error) {
    if (options?.signal?.aborted) throw new Cancelled(error);
    // What was found out is worth more than that it took its time.
    if (error instanceof OpcertError && !(error instanceof Cancelled)) throw error;
    if (late.aborted) throw new TimedOut(timeout);
    throw error;
  }
}

/**
 * Finds what the daemon has to know of this page's account service: its keys and authorities.
 * @param {Options} [options]
 * @returns {Promise<Service>}
 * @throws {TypeError} where the service cannot be reached, or answers something else.
 */
export async function describeService(options) {
  return within(SOON, options, async (signal) => {
    /** @param {string} path */
    const get = async (path) => {
      const answer = await fetch(path, { signal });
      if (!answer.ok) throw new TypeError(`${answer.url} answered ${answer.status}`);
      return answer.text();
    };
    const [keys, authorities] = await Promise.all([
      get("/.well-known/jwks.json"),
      get("/.well-known/est/cacerts"),
    ]);
    const set = parse(keys);
    if (!Array.isArray(set?.keys)) throw new TypeError("the service's keys are no JWK set");
    return { origin: location.origin, keys: set, ca: certificatesOf(authorities) };
  });
}

/**
 * The certificates of an EST answer: a certs-only CMS SignedData (RFC 7030 section 4.1.3).
 * @param {string} pkcs7 Base64 of DER.
 * @returns {string[]} Each base64 of DER.
 * @throws {TypeError} where it is something else.
 */
export function certificatesOf(pkcs7) {
  const bytes = fromBase64(pkcs7);
  // ContentInfo { OID, [0] { SignedData { version, digestAlgorithms, content, [0] certificates } } }
  const [info] = elements(bytes);
  const explicit = elements(info?.content)[1];
  const signed = elements(explicit?.content)[0];
  const set = elements(signed?.content).find((element) => element.tag === 0xa0);
  if (!set) throw new TypeError("the answer holds no certificates");
  return elements(set.content).map(({ whole }) => btoa(String.fromCharCode(...whole)));
}

/** @param {string} text */
function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text.replace(/\s+/g, "")), (c) => c.charCodeAt(0));
  } catch (error) {
    throw new TypeError("the answer is not base64", { cause: error });
  }
}

/**
 * The DER elements that stand one after the other in `bytes`.
 * @param {Uint8Array | undefined} bytes
 * @returns {{ tag: number, content: Uint8Array, whole: Uint8Array }[]}
 */
function elements(bytes) {
  const found = [];
  for (let at = 0; bytes && at < bytes.length; ) {
    const tag = bytes[at] ?? 0;
    let length = bytes[at + 1] ?? 0;
    let head = 2;
    if (length >= 0x80) {
      const digits = length - 0x80;
      // None is a length that the end of the content tells, which is BER.
      if (digits === 0 || digits > 4) throw new TypeError("the answer is not DER");
      length = 0;
      for (let i = 0; i < digits; i += 1) length = length * 256 + (bytes[at + 2 + i] ?? 0);
      head += digits;
    }
    const end = at + head + length;
    if (end > bytes.length) throw new TypeError("the answer is cut off");
    found.push({ tag, content: bytes.subarray(at + head, end), whole: bytes.subarray(at, end) });
    at = end;
  }
  return found;
}

/**
 * @typedef {object} Call
 * @property {string} method
 * @property {string} path
 * @property {object | undefined} body
 * @property {AbortSignal} signal
 */

/**
 * @param {{ status: number, body: any }} answer
 * @returns {any}
 */
function read({ status, body }) {
  if (status >= 200 && status < 300) return body;
  const problem = /** @type {Problem} */ (
    body?.code
      ? body
      : {
          code: "unexpected",
          title: "Unexpected answer",
          status,
          detail: `The daemon answered with status ${status}.`,
          action: "Check that page and daemon are of versions that fit.",
        }
  );
  if (problem.code === "client-certificate-missing") throw new NoClientCertificate(problem);
  if (problem.code === "busy" || problem.code === "limit-reached") throw new Busy(problem);
  throw new Refused(problem);
}

/** `fetch` to the browser door. */
class LoopbackChannel {
  /** @type {"loopback"} */
  name = "loopback";
  #port;

  /** @param {number} port */
  constructor(port) {
    this.#port = port;
  }

  /** @param {Call} call */
  async send({ method, path, body, signal }) {
    const answer = await this.#fetch(path, {
      method,
      signal,
      ...(body === undefined
        ? {}
        : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
    const text = await answer.text().catch((error) => {
      if (signal.aborted) throw error;
      throw new NotRunning(error);
    });
    return { status: answer.status, body: text === "" ? undefined : parse(text) };
  }

  /**
   * @param {string} path
   * @param {AbortSignal | undefined} signal
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *stream(path, signal) {
    try {
      const answer = await this.#fetch(path, {
        headers: { accept: "text/event-stream" },
        signal: signal ?? null,
      });
      if (!answer.ok || !answer.body) {
        read({ status: answer.status, body: parse(await answer.text()) });
        return;
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      try {
        for (;;) {
          const { done, value } = await reader.read();
          if (done) return;
          yield value;
        }
      } finally {
        // Whoever has heard enough leaves no stream open.
        reader.cancel().catch(() => {});
      }
    } catch (error) {
      if (signal?.aborted) throw new Cancelled(error);
      // Of the stream itself: the daemon is gone, or was cut off.
      if (!(error instanceof OpcertError)) throw new NotRunning(error);
      throw error;
    }
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   */
  async #fetch(path, init) {
    const url = `https://localhost:${this.#port}${path}`;
    try {
      return await fetch(url, /** @type {RequestInit} */ ({
        ...init,
        mode: "cors",
        // Firefox presents the client certificate with this only.
        credentials: "include",
        cache: "no-store",
        redirect: "error",
        referrerPolicy: "no-referrer",
        targetAddressSpace: "loopback",
      }));
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw await this.#diagnose(error, init.signal);
    }
  }

  /**
   * A browser tells a page only that a request failed. What can be told from outside: whether it
   * was forbidden; whether the door answers a request that needs no leave to be read; whether it
   * answers one without TLS.
   * @param {unknown} cause
   * @param {AbortSignal | null | undefined} signal
   * @returns {Promise<OpcertError>}
   */
  async #diagnose(cause, signal) {
    if ((await permission()) === "denied") return new PermissionDenied(cause);
    if (await answers(`https://localhost:${this.#port}/`, signal)) {
      return new Refused({
        code: "origin-refused",
        title: "Pages of this origin are not served",
        status: 403,
        detail: `The daemon serves no pages of ${location.origin}.`,
        action: "Ask the administrator of this computer to list it under `[browser] origins`.",
      });
    }
    if (await answers(`http://localhost:${this.#port}/`, signal)) return new Untrusted(cause);
    // The person may have been asked just now, and have declined.
    if ((await permission()) === "denied") return new PermissionDenied(cause);
    return new NotRunning(cause);
  }
}

/**
 * Whether something answers; what, a page cannot see.
 * @param {string} url
 * @param {AbortSignal | null | undefined} signal Whose abortion is thrown.
 */
async function answers(url, signal) {
  const late = AbortSignal.timeout(PROBE);
  try {
    await fetch(url, /** @type {RequestInit} */ ({
      mode: "no-cors",
      credentials: "omit",
      cache: "no-store",
      referrerPolicy: "no-referrer",
      targetAddressSpace: "loopback",
      signal: signal ? AbortSignal.any([late, signal]) : late,
    }));
    return true;
  } catch {
    signal?.throwIfAborted();
    return false;
  }
}

/** Set on the root element by the extension's content script. */
const MARK = "opcertExtension";

function hasExtension() {
  // A worker has no document, and no extension.
  return globalThis.document?.documentElement.dataset[MARK] !== undefined;
}

/**
 * What the content script answers.
 * @typedef {object} ExtensionAnswer
 * @property {"answer" | "chunk" | "end" | "failure"} opcert
 * @property {string} id
 * @property {number} [status]
 * @property {any} [body]
 * @property {string} [chunk]
 * @property {string} [detail]
 */

/** Messages to the extension's content script, which hands them to the native-messaging host. */
class ExtensionChannel {
  /** @type {"extension"} */
  name = "extension";

  /** @param {Call} call */
  async send({ method, path, body, signal }) {
    for await (const answer of this.#exchange({ method, path, body }, signal)) {
      if (answer.opcert === "answer") return { status: answer.status ?? 0, body: answer.body };
    }
    throw new NotRunning("the extension gave no answer");
  }

  /**
   * @param {string} path
   * @param {AbortSignal | undefined} signal
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *stream(path, signal) {
    for await (const answer of this.#exchange({ method: "GET", path, stream: true }, signal)) {
      if (answer.opcert === "chunk") yield answer.chunk ?? "";
      if (answer.opcert === "answer") read({ status: answer.status ?? 0, body: answer.body });
      if (answer.opcert === "end") return;
    }
  }

  /**
   * @param {{ method: string, path: string, body?: object | undefined, stream?: boolean }} request
   * @param {AbortSignal | undefined} signal
   * @returns {AsyncGenerator<ExtensionAnswer, void, void>}
   */
  async *#exchange(request, signal) {
    const id = crypto.randomUUID();
    /** @type {ExtensionAnswer[]} */
    const waiting = [];
    /** @type {() => void} */
    let wake = () => {};
    /** @param {MessageEvent} event */
    const hear = (event) => {
      if (event.source !== window || event.origin !== location.origin) return;
      const data = event.data;
      if (data?.id !== id || !["answer", "chunk", "end", "failure"].includes(data.opcert)) return;
      waiting.push(data);
      wake();
    };
    let over = false;
    const end = () => {
      window.removeEventListener("message", hear);
      signal?.removeEventListener("abort", abort);
      if (!over) window.postMessage({ opcert: "abort", id }, location.origin);
      over = true;
    };
    // At once, whether or not somebody waits for the next answer just now.
    const abort = () => {
      end();
      wake();
    };
    if (signal?.aborted) throw new Cancelled(signal.reason);
    window.addEventListener("message", hear);
    signal?.addEventListener("abort", abort);
    try {
      window.postMessage({ opcert: "request", id, ...request }, location.origin);
      for (;;) {
        if (signal?.aborted) throw new Cancelled(signal.reason);
        const answer = waiting.shift();
        if (answer === undefined) {
          await new Promise((resolve) => {
            wake = () => resolve(undefined);
            if (waiting.length > 0 || signal?.aborted) wake();
          });
          continue;
        }
        over ||= answer.opcert !== "chunk";
        if (answer.opcert === "failure") throw new NotRunning(answer.detail);
        yield answer;
        if (over) return;
      }
    } finally {
      end();
    }
  }
}

/**
 * Server-sent events (HTML section 9.2.6), from text in pieces.
 * @param {AsyncIterable<string>} pieces
 * @returns {AsyncGenerator<{ event: string, data: any, id?: string }, void, void>}
 */
async function* parseEvents(pieces) {
  let buffer = "";
  for await (const piece of pieces) {
    // The daemon ends lines with a line feed alone.
    buffer += piece;
    for (;;) {
      const end = buffer.indexOf("\n\n");
      if (end < 0) break;
      const block = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      /** @type {Map<string, string>} */
      const fields = new Map();
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon <= 0) continue;
        const name = line.slice(0, colon);
        const value = line.slice(colon + 1).replace(/^ /, "");
        const before = name === "data" ? fields.get(name) : undefined;
        fields.set(name, before === undefined ? value : `${before}\n${value}`);
      }
      const [data, id] = [fields.get("data"), fields.get("id")];
      if (data === undefined) continue;
      const event = fields.get("event") ?? "message";
      yield { event, data: parse(data), ...(id === undefined ? {} : { id }) };
    }
  }
}

/**
 * JSON, or what else it is.
 * @param {string} text
 * @returns {any}
 */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
