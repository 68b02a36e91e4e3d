// What axe and others look at first, in the page itself; each finding is a sentence.
() => {
  const found = [], shown = (e) => e.checkVisibility({ visibilityProperty: true });
  const name = (e) => e.outerHTML.slice(0, 90);
  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!document.querySelector("main")) found.push("no main");
  let level = 0;
  for (const h of [...document.querySelectorAll("main :is(h1,h2,h3,h4)")].filter(shown)) {
    const now = Number(h.tagName[1]);
    if (now > level + 1) found.push(`heading skips a level: ${h.textContent}`);
    level = now;
  }
  for (const e of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
    if (shown(e) && !e.labels.length && !e.getAttribute("aria-label") && !e.hasAttribute("aria-hidden")) found.push(`no label: ${name(e)}`);
  for (const e of document.querySelectorAll("a[href], button"))
    if (!e.textContent.trim() && !e.getAttribute("aria-label")) found.push(`no name: ${name(e)}`);
  for (const e of document.querySelectorAll("img:not([alt])")) found.push(`no alt: ${name(e)}`);
  for (const e of document.querySelectorAll("svg"))
    if (!e.hasAttribute("aria-hidden") && !e.closest("[role=img]")) found.push(`picture without words: ${name(e)}`);
  for (const e of document.querySelectorAll("table")) {
    if (!e.caption) found.push(`table without caption: ${name(e)}`);
    if (!e.querySelector("th[scope]")) found.push(`table without header cells: ${name(e)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-controls]"))
    for (const a of ["aria-labelledby", "aria-describedby", "aria-controls"])
      for (const id of (e.getAttribute(a) || "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) found.push(`${a} names nothing: ${id}`);
  for (const e of document.querySelectorAll("[style], style, script:not([src])"))
    if (e.matches("style, script, main [style]") && !e.closest(".leaflet-container, .chart, #graph")) found.push(`inline: ${name(e)}`);
  if (document.documentElement.scrollWidth > innerWidth + 1) found.push(`wider than the window by ${document.documentElement.scrollWidth - innerWidth}`);
  return [...new Set(found)];
}
