// Passkeys: [data-passkey-signin] signs in, [data-passkey-add] adds one to the account of who is signed in. What came
// of it is said in [data-passkey-status]. [data-passkey-way] is shown where there can be passkeys; elsewhere
// [data-passkey-why], which says why not.
"use strict";
(() => {
  const WAITING = "Your browser or device asks you now.";
  const CANCELLED = {
    signin:
      "Not signed in: there is no passkey for this hub on your device, it was cancelled or took too long, or your " +
      "device did not verify you by finger, face or PIN. Try again, or sign in another way.",
    add:
      "No passkey was made: it was cancelled or took too long, or your device cannot keep one, or did not verify you " +
      "by finger, face or PIN. Try again, or use another device.",
  };
  const csrf = () => document.querySelector('meta[name="csrf-token"]').content;

  function obstacle() {
    const host = location.hostname;
    if (/^[0-9.]+$/.test(host) || host.startsWith("[")) {
      if (!host.startsWith("127.") && host !== "[::1]") return ["Passkeys need a name: open this hub by its name, not by an address."];
      const link = document.createElement("a"), here = new URL(location.href);
      here.hostname = "localhost";
      link.href = here.href;
      link.textContent = here.host;
      return ["Passkeys need a name: open ", link, ` instead of ${location.host}.`];
    }
    if (!isSecureContext) return ["Passkeys need https."];
    if (!window.PublicKeyCredential || !PublicKeyCredential.parseRequestOptionsFromJSON)
      return ["This browser has no passkeys, or is too old for them."];
    return null;
  }

  async function post(path, body) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf() },
        body: JSON.stringify(body || {}),
      });
    } catch {
      throw new Error("The hub does not answer. Look whether it runs, and try again.");
    }
    const said = await answer.json().catch(() => ({})); // a proxy before the hub answers with pages
    if (!answer.ok) throw new Error(said.detail || `The hub could not do it (status ${answer.status}). Try again.`);
    return said;
  }

  async function signIn(next, signal) {
    const options = await post("/login/passkey/options");
    const credential = await navigator.credentials.get({
      publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options),
      signal,
    });
    location.assign((await post("/login/passkey", { credential: credential.toJSON(), next })).next);
  }

  async function add(name, signal) {
    const options = await post("/api/v1/me/passkeys/options");
    const credential = await navigator.credentials.create({
      publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options),
      signal,
    });
    await post("/api/v1/me/passkeys", { credential: credential.toJSON(), name });
    location.assign("/account?said=passkey-added");
  }

  function say(text, bad) {
    const status = document.querySelector("[data-passkey-status]");
    status.querySelector("p").textContent = text;
    status.classList.toggle("bad", bad);
    status.hidden = !text;
  }

  // What browsers say of a refusal is for programmers, and NotAllowedError stands for much on purpose.
  function explain(error, what) {
    if (error.name === "InvalidStateError") return "This device has a passkey for your account already.";
    if (error.name === "SecurityError") return "The browser allows no passkeys at this address.";
    return error instanceof DOMException ? CANCELLED[what] : error.message;
  }

  // While the browser waits for the person, the button ends that: not every browser shows what could be cancelled.
  function arm(selector, what, run) {
    document.querySelectorAll(selector).forEach((button) => {
      const label = button.querySelector("span"), words = label.textContent;
      let waiting = null;
      button.addEventListener("click", async (event) => {
        if (event.detail > 1) return; // the second of a double click
        if (waiting) return waiting.abort();
        document.querySelector(".flash")?.remove(); // what was said of the last change
        waiting = new AbortController();
        label.textContent = "Cancel";
        say(WAITING, false);
        try {
          await run(button, waiting.signal);
          say("", false);
        } catch (error) {
          say(waiting.signal.aborted ? "" : explain(error, what), true);
        }
        waiting = null;
        label.textContent = words;
      });
    });
  }

  const why = obstacle();
  if (why) document.querySelectorAll("[data-passkey-why]").forEach((place) => place.replaceChildren(...why));
  document.querySelectorAll(why ? "[data-passkey-why]" : "[data-passkey-way]").forEach((place) => (place.hidden = false));
  const field = document.querySelector("[data-passkey-name]");
  arm("[data-passkey-signin]", "signin", (button, signal) => signIn(button.dataset.next || "/", signal));
  arm("[data-passkey-add]", "add", (_, signal) => add(field.value.trim() || "passkey", signal));
  field?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && field.value.trim()) document.querySelector("[data-passkey-add]").click();
  });
})();
