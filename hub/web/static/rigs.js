// A rig's page: each figure over the runs, a line for each guest, the limit as a dashed one.
"use strict";
(() => {
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [4, 4], [1, 3]], COLOURS = ["accent", "info", "warn", "off", "ok", "ink"];
  const HEIGHT = 190, plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const short = (value) => (value == null ? "—" : String(Number(value.toPrecision(4))));

  function draw(figure) {
    const data = JSON.parse(figure.dataset.trend), box = figure.querySelector(".chart");
    plots.get(figure)?.destroy();
    const axis = { stroke: colour("ink-2"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
    const series = [{ label: "run", value: (_, v) => (v == null ? "—" : v) }], rows = [data.runs];
    data.lines.forEach((line, at) => {
      series.push({
        label: line.name, stroke: colour(COLOURS[at]), width: 2, dash: DASHES[at], spanGaps: true, points: { size: 4 },
        value: (_, v) => (v == null ? "—" : `${short(v)} ${data.unit}`),
      });
      rows.push(line.values);
    });
    if (data.limit !== null) {
      series.push({ label: "limit", stroke: colour("bad"), width: 1.5, dash: [3, 4], points: { show: false }, value: () => short(data.limit) });
      rows.push(data.runs.map(() => data.limit));
    }
    const last = data.runs.length - 1, rest = (plot) => plot.setLegend({ idx: last }, false);
    const plot = new uPlot({
      width: Math.max(200, box.clientWidth), height: HEIGHT, cursor: { drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: (_, low, high) => [Math.min(0, low), (high || 1) * 1.12] } },
      axes: [
        { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], space: 44 },
        { ...axis, size: 52, values: (_, ticks) => ticks.map(short) },
      ],
      series,
      hooks: { ready: [rest], setCursor: [(plot) => plot.cursor.idx == null && rest(plot)] },
    }, rows, box);
    // A table for a screen reader, too
    const legend = box.querySelector("table.u-legend");
    legend.createCaption().className = "visually-hidden";
    legend.caption.textContent = `${figure.querySelector("strong").textContent}: the newest run`;
    for (const head of legend.querySelectorAll("th")) head.scope = "row";
    plots.set(figure, plot);
  }
  function all() {
    for (const figure of plots.keys()) if (!figure.isConnected) { plots.get(figure).destroy(); plots.delete(figure); }
    for (const figure of document.querySelectorAll("[data-trend]")) draw(figure);
  }
  document.addEventListener("htmx:afterSwap", all);
  document.addEventListener("themechange", all);
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(all, 150); });
  all();
})();
