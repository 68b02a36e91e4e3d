// Passkeys: [data-passkey-signin] signs in, [data-passkey-add] adds one to the account of who is signed in.
"use strict";
(() => {
  const supported = window.PublicKeyCredential && PublicKeyCredential.parseRequestOptionsFromJSON;
  const csrf = () => document.querySelector('meta[name="csrf-token"]').content;

  async function post(path, body) {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf() },
      body: JSON.stringify(body || {}),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.detail || "It did not work.");
    return said;
  }

  async function signIn(next) {
    const options = await post("/login/passkey/options");
    const credential = await navigator.credentials.get({
      publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options),
    });
    location.assign((await post("/login/passkey", { credential: credential.toJSON(), next })).next);
  }

  async function add(name) {
    const options = await post("/api/v1/me/passkeys/options");
    const credential = await navigator.credentials.create({
      publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options),
    });
    await post("/api/v1/me/passkeys", { credential: credential.toJSON(), name });
    location.reload();
  }

  function arm(button, run) {
    button.hidden = !supported;
    button.addEventListener("click", async () => {
      const status = document.querySelector("[data-passkey-status]");
      button.disabled = true;
      try {
        await run();
      } catch (error) {
        if (status && error.name !== "NotAllowedError") status.textContent = error.message;
      }
      button.disabled = false;
    });
  }

  document.querySelectorAll("[data-passkey-signin]").forEach((button) => {
    arm(button, () => signIn(button.dataset.next || "/"));
  });
  document.querySelectorAll("[data-passkey-add]").forEach((button) => {
    const field = document.querySelector(button.dataset.passkeyAdd || "[data-passkey-name]");
    arm(button, () => add((field && field.value) || "passkey"));
  });
})();
