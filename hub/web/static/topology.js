// The graph of who knows whom.
"use strict";
(() => {
  const place = document.getElementById("graph");
  if (!place) return;
  const said = document.querySelector("[data-graph-said]");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const look = () => [
    { selector: "node", style: {
      label: "data(name)", "font-family": "Inter, sans-serif", "font-size": 9, color: colour("ink"), "text-valign": "bottom", "text-margin-y": 4,
      "text-outline-color": colour("surface"), "text-outline-width": 1.5, "min-zoomed-font-size": 7,
      width: "mapData(degree, 0, 12, 12, 30)", height: "mapData(degree, 0, 12, 12, 30)",
      "background-color": colour("off-soft"), "border-width": 2, "border-color": colour("off") } },
    { selector: "node[kind = 'ok']", style: { "background-color": colour("ok"), "border-color": colour("surface") } },
    { selector: "edge", style: { width: 1.2, "line-color": colour("line-strong"), opacity: 0.55, "curve-style": "haystack" } },
    { selector: ".dim", style: { opacity: 0.12, "text-opacity": 0 } },
    { selector: "edge.near", style: { "line-color": colour("accent"), opacity: 1, width: 2 } },
    { selector: "node:selected", style: { "border-color": colour("accent"), "border-width": 4 } },
  ];
  fetch(place.dataset.graph).then((answer) => answer.json()).then(({ nodes, edges }) => {
    const degree = {};
    for (const pair of edges) for (const id of pair) degree[id] = (degree[id] || 0) + 1;
    const cy = cytoscape({
      container: place,
      elements: [
        ...nodes.map((node) => ({ data: { ...node, degree: degree[node.id] || 0 } })),
        ...edges.map(([source, target]) => ({ data: { source, target } })),
      ],
      style: look(),
      layout: { name: "cose", animate: false, randomize: true, nodeRepulsion: 9000, idealEdgeLength: 70, numIter: nodes.length > 150 ? 300 : 800 },
      minZoom: 0.1, maxZoom: 4,
    });
    const near = (node) => {
      cy.elements().addClass("dim").removeClass("near");
      const around = node.closedNeighborhood();
      around.removeClass("dim");
      around.edges().addClass("near");
      said.textContent = `${node.data("name")} (${node.data("state")}, ${node.data("address")}) knows ${node.neighborhood("node").length}.`;
    };
    cy.on("tap", "node", (event) => near(event.target));
    cy.on("dbltap", "node", (event) => location.assign(`/devices/${event.target.id()}`));
    cy.on("tap", (event) => { if (event.target === cy) cy.elements().removeClass("dim near"); });
    document.addEventListener("themechange", () => cy.style(look()));
    document.querySelector("[data-graph-fit]").addEventListener("click", () => cy.fit(undefined, 24));
    document.querySelector("[data-graph-find]").addEventListener("input", (event) => {
      const text = event.target.value.trim().toLowerCase();
      const found = text ? cy.nodes().filter((node) => node.data("name").includes(text)).first() : null;
      if (!text) cy.elements().removeClass("dim near");
      if (found && found.length) {
        near(found);
        if (still) cy.center(found); else cy.animate({ center: { eles: found }, duration: 200 });
      }
    });
    cy.fit(undefined, 24);
  }, () => edgeSay("The graph could not be had. Load the page again."));
})();
