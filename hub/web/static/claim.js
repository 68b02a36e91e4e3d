// The page that a device's link leads to: approve or deny.
"use strict";
(() => {
  const form = document.querySelector("[data-claim]");
  const status = document.querySelector("[data-claim-status]");
  const csrf = document.querySelector('meta[name="csrf-token"]').content;

  async function decide(what, body, said) {
    const answer = await fetch(`/api/v1/claims/${form.dataset.claim}/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
      body: JSON.stringify(body),
    });
    if (answer.ok) form.hidden = true;
    status.textContent = answer.ok ? said : (await answer.json()).detail;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const tags = form.elements.tags.value.split(/[\s,]+/).filter(Boolean);
    decide("approve", { tags, user: form.elements.user.value.trim() }, "Approved. The device comes in within some seconds.");
  });
  form.querySelector("[data-claim-deny]").addEventListener("click", () => decide("deny", {}, "Denied."));
})();
