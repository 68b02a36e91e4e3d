// What every page has: live regions, the keyboard, confirmations, choosing rows, copying, times, tabs.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Messages, also for screen readers
  const TOASTS_MAX = 3;
  function say(text) {
    const place = $("[data-toasts]");
    if (!place) return;
    while (place.children.length >= TOASTS_MAX) place.firstChild.remove();
    const toast = document.createElement("div");
    toast.className = "toast-ours";
    toast.textContent = text;
    place.append(toast);
    setTimeout(() => toast.remove(), 5000);
  }
  window.edgeSay = say;

  // Live: one stream for the page. A region says what it shows (data-live) and where it is had anew (data-live-src).
  // It is fetched soon after a change, and not again before GAP has passed, so that a busy fleet costs the same.
  const SOON_MS = 150, GAP_MS = 2000;
  const regions = new WeakMap();
  function refresh(region) {
    const known = regions.get(region) || { at: 0, timer: 0 };
    regions.set(region, known);
    if (known.timer) return;
    const wait = Math.max(SOON_MS, known.at + Number(region.dataset.liveGap || GAP_MS) - Date.now());
    known.timer = setTimeout(() => {
      known.timer = 0;
      if (!region.isConnected) return;
      if (document.hidden || isBusy(region)) {
        region.dataset.liveStale = "";
        return;
      }
      const id = region.id, chosen = $$("input[name=id]:checked", region).map((box) => box.value);
      const at = $("[data-at]", region)?.dataset.device;
      htmx.ajax("GET", region.dataset.liveSrc, { target: region, swap: "outerHTML" }).then(() => {
        const fresh = document.getElementById(id);
        if (!fresh) return;
        regions.set(fresh, { at: Date.now(), timer: 0 });
        for (const box of $$("input[name=id]", fresh)) box.checked = chosen.includes(box.value);
        if (at) $(`[data-device="${CSS.escape(at)}"]`, fresh)?.setAttribute("data-at", "");
        tidy();
      });
    }, wait);
  }
  // Nobody's typing is swapped away; the region catches up when they leave.
  function isBusy(region) {
    const focus = document.activeElement;
    return region.contains(focus) && focus.matches("input:not([type=checkbox]), textarea, select") || $("dialog[open]") !== null;
  }
  function catchUp() {
    for (const region of $$("[data-live-stale]")) {
      delete region.dataset.liveStale;
      refresh(region);
    }
  }
  document.addEventListener("visibilitychange", catchUp);
  document.addEventListener("focusout", () => setTimeout(catchUp, 200));

  // A browser has six connections to a host (HTTP/1.1), and each open page would hold one: a page in the background lets
  // its own go after a while, and catches up when it is looked at again.
  const HIDDEN_MS = 20000;
  function listen() {
    const mark = $("[data-live-state]");
    if (!mark) return;
    const show = (state, text) => { mark.dataset.state = state; $("span", mark).textContent = text; };
    const kinds = new Set(["all"]);
    for (const region of $$("[data-live]")) for (const kind of region.dataset.live.split(" ")) kinds.add(kind.split("=")[0]);
    let stream = null, missed = false, timer = 0;
    const open = () => {
      // From when the page was made: what changed until now would be missed
      stream = new EventSource(`/live?since=${missed ? "" : mark.dataset.liveSince}`);
      stream.onopen = () => {
        show("on", "live");
        if (missed) hear("all", {});
        missed = false;
      };
      stream.onerror = () => {
        missed = true;
        show("off", stream.readyState === EventSource.CLOSED ? "not live: load again" : "reconnecting …");
      };
      for (const kind of kinds) stream.addEventListener(kind, (event) => hear(kind, JSON.parse(event.data)));
    };
    const close = () => { stream?.close(); stream = null; missed = true; };
    document.addEventListener("visibilitychange", () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(close, HIDDEN_MS);
      else if (!stream) open();
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted && !stream) open(); });
    open();
  }
  function hear(kind, data) {
    for (const region of $$("[data-live]")) {
      const wanted = region.dataset.live.split(" ");
      if (kind === "all" || wanted.includes(kind) || (data.device && wanted.includes(`device=${data.device}`))) refresh(region);
    }
    document.dispatchEvent(new CustomEvent("edgelive", { detail: { kind, ...data } }));
  }

  // Times stay true while the page is open, and are said in the reader's zone
  const STEPS = [[2 * 86400, 86400, "d"], [2 * 3600, 3600, "h"], [120, 60, "min"], [0, 1, "s"]];
  function relative(seconds) {
    const size = Math.abs(seconds);
    if (size < 5) return "just now";
    const [, unit, name] = STEPS.find(([from]) => size >= from);
    const text = `${Math.round(size / unit)} ${name}`;
    return seconds > 0 ? `${text} ago` : `in ${text}`;
  }
  function times() {
    const now = Date.now();
    for (const time of $$("time[datetime]")) {
      const then = Date.parse(time.dateTime);
      time.textContent = relative(Math.round((now - then) / 1000));
      if (!time.dataset.local) {
        time.title = new Date(then).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
        time.dataset.local = "1";
      }
    }
  }
  setInterval(() => document.hidden || times(), 15000);

  // Confirmations: a form's button or the form says what will happen
  document.addEventListener("submit", (event) => {
    const form = event.target, button = event.submitter;
    const source = button?.dataset.confirm ? button : form.dataset.confirm ? form : null;
    if (!source || form.dataset.confirmed) return;
    event.preventDefault();
    const dialog = $("#confirm");
    $("[data-confirm-title]", dialog).textContent = source.dataset.confirmTitle || "Are you sure?";
    $("[data-confirm-text]", dialog).textContent = source.dataset.confirm;
    $("[data-confirm-yes]", dialog).textContent = source.dataset.confirmYes || "Yes";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") return button?.focus();
      form.dataset.confirmed = "1";
      form.requestSubmit(button);
      delete form.dataset.confirmed;
    }, { once: true });
  }, true);

  // Choosing rows
  function tidy() {
    for (const form of $$("[data-bulk]")) {
      const boxes = $$("input[name=id]", form), chosen = boxes.filter((box) => box.checked);
      for (const box of boxes) box.closest("tr").classList.toggle("is-on", box.checked);
      const bar = $("[data-bulk-bar]", form), all = $("[data-bulk-all]", form);
      if (bar) {
        bar.classList.toggle("on", chosen.length > 0);
        $("[data-bulk-count]", bar).textContent = `${chosen.length} chosen`;
      }
      if (all) {
        all.checked = boxes.length > 0 && chosen.length === boxes.length;
        all.indeterminate = chosen.length > 0 && chosen.length < boxes.length;
      }
    }
    times();
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-bulk-all]"))
      for (const box of $$("input[name=id]", event.target.form)) box.checked = event.target.checked;
    if (event.target.matches("[data-bulk-all], input[name=id]")) tidy();
  });

  document.addEventListener("click", (event) => {
    const on = (selector) => event.target.closest(selector);
    let found;
    if (on("[data-bulk-none]")) {
      for (const box of $$("input[name=id]:checked")) box.checked = false;
      tidy();
    } else if ((found = on("[data-copy]"))) {
      const text = $("code", found.parentElement).textContent;
      navigator.clipboard.writeText(text).then(() => say("Copied"), () => say("Copying was refused: select the text"));
    } else if (on("[data-theme-switch]")) {
      say(`Colours: ${{ system: "as the system has them", light: "light", dark: "dark" }[edgeTheme.next()]}`);
    } else if (on("[data-help]")) {
      help();
    } else if ((found = on("[data-nav-toggle]"))) {
      nav(document.documentElement.dataset.nav !== "open");
    } else if (document.documentElement.dataset.nav === "open" && !on(".side")) {
      nav(false);
    }
  });
  function nav(open) {
    document.documentElement.dataset.nav = open ? "open" : "";
    const button = $("[data-nav-toggle]");
    button?.setAttribute("aria-expanded", String(open));
    (open ? $(".side a") : button)?.focus();
  }
  function help() {
    const sheet = $("#help");
    if (sheet && !sheet.open) sheet.showModal();
  }

  // Tabs (WAI-ARIA): arrows go, one is in the order of Tab
  for (const list of $$("[role=tablist]")) {
    const tabs = $$("[role=tab]", list);
    const choose = (tab, focus) => {
      for (const each of tabs) {
        const on = each === tab;
        each.setAttribute("aria-selected", String(on));
        each.tabIndex = on ? 0 : -1;
        document.getElementById(each.getAttribute("aria-controls")).hidden = !on;
      }
      if (focus) tab.focus();
    };
    list.addEventListener("click", (event) => event.target.closest("[role=tab]") && choose(event.target.closest("[role=tab]")));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length], true);
    });
  }

  // Keyboard
  let went = 0;
  function row(step) {
    const rows = $$("tr[data-href]");
    if (!rows.length) return;
    const at = rows.findIndex((each) => each.hasAttribute("data-at"));
    const next = rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + step))];
    rows[at]?.removeAttribute("data-at");
    next.setAttribute("data-at", "");
    next.scrollIntoView({ block: "nearest" });
    $("a", next)?.focus({ preventScroll: true });
  }
  const KEYS = {
    "/": () => { const search = $("[data-search]"); if (search) { search.focus(); search.select(); } else location.assign("/devices#search"); },
    "?": help,
    j: () => row(1),
    k: () => row(-1),
    x: () => { const box = $("tr[data-at] input[name=id]"); if (box) { box.checked = !box.checked; tidy(); } },
    n: () => location.assign("/add"),
    g: () => { went = Date.now(); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.documentElement.dataset.nav === "open") return nav(false);
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    if (event.target.matches("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]")) return;
    if (Date.now() - went < 1500 && event.key !== "g") {
      const place = $(`[data-go="${CSS.escape(event.key)}"]`);
      went = 0;
      if (place) { event.preventDefault(); return location.assign(place.href); }
    }
    const act = KEYS[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  document.addEventListener("htmx:afterSwap", tidy);
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401 || event.detail.xhr.status === 403) say("Your session is over, or this is not allowed. Load the page again.");
  });
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRF-Token"] = $("meta[name=csrf-token]").content;
  });
  tidy();
  listen();
  if (location.hash === "#search") $("[data-search]")?.focus();
})();
