// Devices on outlines of countries; all of it is on this hub.
"use strict";
(() => {
  const place = document.getElementById("map");
  if (!place) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const map = L.map(place, { worldCopyJump: false, minZoom: 1, maxZoom: 9, zoomSnap: 0.25, attributionControl: true, zoomAnimation: !still, fadeAnimation: !still, keyboard: true });
  map.attributionControl.setPrefix("");
  map.attributionControl.addAttribution("Outlines: Natural Earth");
  const get = (url) => fetch(url).then((answer) => answer.json());
  Promise.all([get(place.dataset.land), get(place.dataset.map)]).then(([world, devices]) => {
    const land = topojson.feature(world, world.objects.countries);
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
