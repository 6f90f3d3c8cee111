"use strict";
// A searched scene: one query at a time; a number on the picture and its entry in the list choose each other.
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const frame = byId("frame"), plan = byId("plan");

  function showQuery(number) {
    for (const part of all("[data-query]:not(button)")) part.hidden = part.dataset.query !== number;
    for (const button of all("button[data-query]")) button.setAttribute("aria-pressed", String(button.dataset.query === number));
    choose(null);
  }
  function choose(hit) {
    for (const part of all("[data-hit]")) part.classList.toggle("chosen", part.dataset.hit === hit);
    for (const pin of all(".pin")) pin.setAttribute("aria-pressed", String(pin.dataset.hit === hit));
  }
  // The middle of a place into the middle of the frame, where the picture is larger than that.
  function bring(pin) {
    frame.scrollTo({ left: pin.offsetLeft - frame.clientWidth / 2, top: pin.offsetTop - frame.clientHeight / 2 });
  }

  document.addEventListener("click", (event) => {
    const query = event.target.closest("button[data-query]");
    if (query) return showQuery(query.dataset.query);
    const pin = event.target.closest(".pin");
    if (pin) {
      choose(pin.dataset.hit);
      const entry = all("li.hit").find((item) => item.dataset.hit === pin.dataset.hit);
      return entry.scrollIntoView({ block: "nearest" });
    }
    const thumb = event.target.closest(".hit .thumb");
    if (!thumb) return;
    const { hit } = thumb.closest("li").dataset;
    choose(hit);
    const own = all(".pin").find((item) => item.dataset.hit === hit);
    bring(own);
    frame.scrollIntoView({ block: "nearest" });
  });
  byId("opacity").addEventListener("input", (event) => {
    plan.style.setProperty("--opacity", String(event.target.value / 100));
    byId("amount").textContent = `${event.target.value} %`;
  });
  byId("size").addEventListener("change", (event) => {
    plan.style.width = `${100 * event.target.value}%`;
    const chosen = document.querySelector(".pin.chosen");
    if (chosen) bring(chosen);
  });
  document.querySelector(".tools form").addEventListener("submit", (event) => event.preventDefault());
  document.documentElement.classList.add("scripted");
  choose(null);
})();
