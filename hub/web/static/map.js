// Devices on outlines of countries; all of it is on this hub.
"use strict";
(() => {
  const place = document.getElementById("map");
  if (!place) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const map = L.map(place, { worldCopyJump: false, minZoom: 1, maxZoom: 9, zoomSnap: 0.25, attributionControl: true, zoomAnimation: !still, fadeAnimation: !still, keyboard: true });
  map.attributionControl.setPrefix("");
  map.attributionControl.addAttribution("Outlines: Natural Earth");
  // A ring that crosses the date line goes on beyond it, instead of around the world.
  function unwrap(ring) {
    for (let at = 1; at < ring.length; at++) {
      const step = ring[at][0] - ring[at - 1][0];
      if (Math.abs(step) > 180) ring[at][0] -= Math.sign(step) * 360;
    }
  }
  const get = (url) => fetch(url).then((answer) => answer.json());
  Promise.all([get(place.dataset.land), get(place.dataset.map)]).then(([world, devices]) => {
    const land = topojson.feature(world, world.objects.countries);
    for (const { geometry } of land.features)
      for (const polygon of geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates) polygon.forEach(unwrap);
    L.geoJSON(land, { interactive: false, className: "land", style: { className: "land" } }).addTo(map);
    const pins = devices.map((device) => {
      const pin = L.circleMarker(device.at, { radius: 7, className: `pin ${device.kind}` });
      const box = document.createElement("div"), link = document.createElement("a");
      link.href = `/devices/${device.id}`;
      link.textContent = device.name;
      box.append(link, document.createElement("br"), `${device.state}${device.address ? `, ${device.address}` : ""}`);
      return pin.bindPopup(box).bindTooltip(device.name);
    });
    const group = L.featureGroup(pins).addTo(map);
    map.fitBounds(group.getBounds().pad(0.15), { maxZoom: 6, animate: false });
  }, () => edgeSay("The map could not be had. Load the page again."));
})();
