// Before the first paint: light or dark, as the system has it or as somebody chose.
(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try { return localStorage.getItem("theme") || "system"; } catch { return "system"; }
  };
  const apply = () => {
    const choice = read();
    root.dataset.themeChoice = choice;
    root.dataset.bsTheme = choice === "dark" || (choice === "system" && system.matches) ? "dark" : "light";
    document.dispatchEvent(new CustomEvent("themechange"));
  };
  system.addEventListener("change", apply);
  window.edgeTheme = {
    next() {
      const order = ["system", "light", "dark"];
      const choice = order[(order.indexOf(read()) + 1) % order.length];
      try { localStorage.setItem("theme", choice); } catch { /* private window: for this page only */ }
      apply();
      return choice;
    },
  };
  apply();
})();
