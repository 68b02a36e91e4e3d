// A device's page: looking live, and the picture of its traffic while somebody does.
"use strict";
(() => {
  const place = document.querySelector("[data-watch]");
  const button = place?.querySelector("[data-watch-switch]");
  if (!button) return;
  const POINTS_MAX = 300, AGAIN_MS = 60000;
  const said = place.querySelector("[data-watch-said]"), chart = place.querySelector("[data-chart]");
  const data = [[], [], []];
  let timer = 0, plot = null;

  const tell = (on, leaving) => fetch(place.dataset.watch, {
    method: "POST",
    keepalive: leaving === true,
    headers: { "Content-Type": "application/x-www-form-urlencoded", "X-CSRF-Token": document.querySelector("meta[name=csrf-token]").content },
    body: `on=${on ? "yes" : "no"}`,
  });
  async function begin() {
    const answer = await tell(true).catch(() => null);
    if (!answer || !answer.ok) {
      said.textContent = "The hub refused: the device may be offline or removed.";
      return;
    }
    button.setAttribute("aria-pressed", "true");
    button.querySelector("span").textContent = "Stop looking";
    said.textContent = "Looking. It answers within seconds when it is online.";
    clearInterval(timer);
    timer = setInterval(() => document.hidden || tell(true), AGAIN_MS);
  }
  function end(leaving) {
    if (!timer) return;
    clearInterval(timer);
    timer = 0;
    tell(false, leaving).catch(() => null);
    button.setAttribute("aria-pressed", "false");
    button.querySelector("span").textContent = "Look live";
    said.textContent = "A device tells how it is only while somebody looks.";
  }
  button.addEventListener("click", () => (timer ? end(false) : begin()));
  addEventListener("pagehide", () => end(true));

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const size = (count) => {
    for (const unit of ["B", "KiB", "MiB"]) {
      if (count < 1024) return `${count.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
      count /= 1024;
    }
    return `${count.toFixed(1)} GiB`;
  };
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
  function draw() {
    chart.hidden = false;
    const box = chart.querySelector(".chart");
    const axis = { stroke: colour("ink-2"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
    plot?.destroy();
    plot = new uPlot({
      width: box.clientWidth - 16, height: 200, cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high, 1024) * 1.15] } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map(clock), space: 90 }, { ...axis, size: 76, values: (_, ticks) => ticks.map(size) }],
      series: [
        { label: "at", value: (_, v) => (v === null ? "" : clock(v)) },
        { label: "receives", stroke: colour("accent"), width: 2, value: (_, v) => (v === null ? "" : `${size(v)}/s`) },
        { label: "sends", stroke: colour("info"), width: 2, dash: [6, 3], value: (_, v) => (v === null ? "" : `${size(v)}/s`) },
      ],
    }, data, box);
  }
  function take() {
    const text = document.getElementById("now")?.dataset.point;
    if (!text || !timer) return;
    const point = JSON.parse(text), times = data[0];
    if (times.length && point.at <= times[times.length - 1]) return;
    [point.at, point.rx, point.tx].forEach((value, at) => {
      data[at].push(value);
      if (data[at].length > POINTS_MAX) data[at].shift();
    });
    said.textContent = "Live.";
    if (plot) plot.setData(data);
    else if (times.length > 1) draw();
  }
  document.addEventListener("htmx:afterSwap", take);
  document.addEventListener("themechange", () => plot && draw());
  addEventListener("resize", () => plot && plot.setSize({ width: chart.querySelector(".chart").clientWidth - 16, height: 200 }));
})();
