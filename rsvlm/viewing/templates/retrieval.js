"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dialog = byId("dialog");
  const cards = [...document.querySelectorAll(".card")].map((card, position) => {
    const item = page.items[position];
    const seen = [...card.querySelectorAll("[data-image]")].map((thumb) => page.images[thumb.dataset.image]);
    const names = seen.map((image) => `${image.id} ${image.label}`).join(" ");
    return { card, item, position, text: `${card.textContent} ${item.direction === "image_to_text" ? names : ""}`.toLowerCase() };
  });
  const choice = { direction: "text_to_image", order: "random" };

  function update() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const source = byId("source") ? byId("source").value : "";
    const of = cards.filter(({ item }) => item.direction === choice.direction);
    const shown = of.filter(({ item, text }) =>
      (!source || item.source === source) && words.every((word) => text.includes(word)) &&
      (choice.order !== "random" || item.draw !== null || words.length > 0));
    const sign = choice.order === "worst" ? -1 : 1;
    if (choice.order !== "random")
      shown.sort((a, b) => sign * (a.item.rank - b.item.rank || b.item.score - a.item.score) || a.position - b.position);
    const visible = new Set(shown);
    for (const entry of of) entry.card.hidden = !visible.has(entry);
    for (const section of document.querySelectorAll("section")) section.hidden = section.id !== choice.direction;
    document.querySelector(`#${choice.direction} .list`).append(...shown.map((entry) => entry.card));
    byId("nothing").hidden = shown.length > 0;
    byId("count").textContent = countText(shown.length, of.length, words.length > 0 || source);
    for (const key of ["direction", "order"])
      for (const button of document.querySelectorAll(`[data-${key}]`))
        button.setAttribute("aria-pressed", String(button.dataset[key] === choice[key]));
  }

  // What is counted: searches in this direction that are shown, of those on the page, of all that were made.
  function countText(shown, here, filtered) {
    const [asks, total] = choice.direction === "text_to_image" ? ["captions", page.searches[0]] : ["images", page.searches[1]];
    if (filtered) return `${shown} of the ${here} ${asks} on this page`;
    if (here === total) return `all ${total} ${asks}`;
    const random = cards.filter(({ item }) => item.direction === choice.direction && item.draw !== null).length;
    if (choice.order === "random") return `${shown} ${asks} drawn at random of ${total}`;
    return `${here} ${asks} of ${total}: ${random} drawn at random and the ${here - random} best, middle and worst`;
  }

  let opener = null;
  function enlarge(thumb) {
    const image = page.images[thumb.dataset.image];
    opener = thumb;
    const copy = document.createElement("div");
    copy.className = `thumb t${Number(thumb.dataset.image)}`;
    copy.setAttribute("role", "img");
    copy.setAttribute("aria-label", thumb.getAttribute("aria-label").replace(/^Enlarge /, ""));
    dialog.querySelector(".picture").replaceChildren(copy);
    dialog.querySelector(".where span").textContent = [image.label, image.id].filter(Boolean).map(isolated).join(" · ");
    const foreign = Object.entries(image.languages).flatMap(([code, texts]) => texts.map((text) => make("li", {}, drawForeign(code, text, page.languages))));
    dialog.querySelector("ul").replaceChildren(...image.captions.map((caption) => make("li", {}, caption)), ...foreign);
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const thumb = event.target.closest("button[data-image]");
    if (thumb) enlarge(thumb);
    else if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
  dialog.addEventListener("close", () => opener && opener.focus());
  for (const key of ["direction", "order"])
    for (const button of document.querySelectorAll(`[data-${key}]`))
      button.addEventListener("click", () => { choice[key] = button.dataset[key]; update(); });
  for (const id of ["search", "source"]) if (byId(id)) byId(id).addEventListener("input", update);
  document.querySelector(".tools form").addEventListener("submit", (event) => event.preventDefault());
  document.documentElement.classList.add("scripted");
  update();
})();
