"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const grid = byId("grid"), dialog = byId("dialog");
  const cards = [...grid.children].map((card, position) => {
    const said = card.querySelector(".said").textContent;
    const references = card.querySelector(".references ul").textContent;
    const chip = document.createElement("span");
    chip.className = "chip order";
    chip.hidden = true;
    card.querySelector(".open").append(chip);
    const all = [said, card.textContent, page.items[position].id].join(" ");
    return { card, chip, item: page.items[position], text: { said, references, all }, position };
  });
  for (const entry of cards) for (const key of Object.keys(entry.text)) entry.text[key] = entry.text[key].toLowerCase();

  const choice = { order: "random" };
  const chosen = (id) => (byId(id) ? byId(id).value : "");
  const score = (item, run, metric) => {
    const value = (item.scores[run] || {})[metric];
    return typeof value === "number" ? value : null;
  };
  const measured = (item) => {
    const own = score(item, page.run, chosen("metric"));
    if (chosen("measure") !== "gap") return own;
    const other = score(item, page.rival, chosen("metric"));
    return own === null || other === null ? null : own - other;
  };
  const middleOf = (values) => {
    const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : 0;
  };

  let shown = [];
  function update() {
    const metric = chosen("metric"), gap = chosen("measure") === "gap", random = choice.order === "random";
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const source = chosen("source"), label = chosen("label"), seen = chosen("seen"), where = chosen("where") || "said";
    const fits = ({ item, text }) =>
      (!source || item.source === source) && (!label || item.label === label) && (!seen || item.seen === (seen === "yes")) &&
      (!random || item.draw !== null || words.length > 0 || label) && words.every((word) => text[where].includes(word));
    const candidates = cards.filter(fits);
    const values = new Map(cards.map((entry) => [entry, random ? null : measured(entry.item)]));
    // The middle of the whole split is known by rank; that of a gap, or of a part, from what is shown.
    const ranked = choice.order === "median" && !gap && !source && !label && !seen;
    const middle = ranked ? (page.measured[metric] + 1) / 2 : middleOf(candidates.map((entry) => values.get(entry)));
    const key = (entry) => {
      const value = values.get(entry);
      if (random) return entry.position;
      if (value === null) return Infinity;
      if (choice.order === "median") return Math.abs((ranked ? entry.item.rank[metric] : value) - middle);
      return choice.order === "best" ? -value : value;
    };
    shown = candidates.map((entry) => ({ entry, key: key(entry) }))
      .sort((a, b) => (a.key === b.key ? a.entry.position - b.entry.position : a.key < b.key ? -1 : 1))
      .map(({ entry }) => entry);
    const visible = new Set(shown);
    for (const entry of cards) {
      const value = values.get(entry);
      entry.card.hidden = !visible.has(entry);
      entry.chip.hidden = value === null;
      entry.chip.textContent = value === null ? "" : gap ? `gap ${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}` : `${metric} ${value.toFixed(2)}`;
    }
    grid.append(...shown.map((entry) => entry.card));
    byId("nothing").hidden = shown.length > 0;
    byId("count").textContent = `${shown.length} of ${cards.length} images`;
    for (const button of document.querySelectorAll("[data-order]"))
      button.setAttribute("aria-pressed", String(button.dataset.order === choice.order));
  }

  function cell(tag, text, scope) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  }
  function scoreTable(item) {
    const table = document.createElement("table"), head = document.createElement("tr"), body = document.createElement("tbody");
    table.className = "scores";
    head.append(cell("th", "run", "col"), ...page.metrics.map((metric) => cell("th", metric, "col")));
    table.createTHead().append(head);
    for (const run of page.runs) {
      const row = document.createElement("tr");
      if (run === page.run) row.className = "own";
      row.append(cell("th", run, "row"), ...page.metrics.map((metric) => {
        const value = score(item, run, metric);
        return cell("td", value === null ? "–" : value.toFixed(2));
      }));
      body.append(row);
    }
    table.append(body);
    return table;
  }
  let open = null;
  function enlarge(entry) {
    open = entry;
    const { card, item } = entry, words = dialog.querySelector(".words");
    while (words.children.length > 1) words.lastChild.remove();
    const image = card.querySelector("img").cloneNode();
    image.loading = "eager";
    dialog.querySelector(".picture").replaceChildren(image);
    dialog.querySelector(".where span").textContent = item.label ? `${item.label} · ${item.id}` : item.id;
    const said = card.querySelector(".said").cloneNode(true);
    said.className = "";
    words.append(said);
    if (page.metrics.length) {
      const wide = document.createElement("div");
      wide.className = "scroll";
      wide.append(scoreTable(item));
      words.append(wide);
    }
    for (const fold of card.querySelectorAll(".fold")) {
      const copy = fold.cloneNode(true);
      copy.open = true;
      words.append(copy);
    }
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  function step(by) {
    const next = shown[shown.indexOf(open) + by];
    if (next) enlarge(next);
  }

  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) enlarge(cards.find((entry) => entry.card === button.parentElement));
  });
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog || (button && "close" in button.dataset)) dialog.close();
    else if (button && button.dataset.step) step(Number(button.dataset.step));
  });
  dialog.addEventListener("close", () => open && open.card.querySelector(".open").focus());
  document.addEventListener("keydown", (event) => {
    if (dialog.open && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      event.preventDefault();
      step(event.key === "ArrowRight" ? 1 : -1);
    } else if (event.key === "/" && !dialog.open && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  for (const button of document.querySelectorAll("[data-order]"))
    button.addEventListener("click", () => { choice.order = button.dataset.order; update(); });
  for (const id of ["metric", "measure"])
    if (byId(id)) byId(id).addEventListener("change", () => { if (choice.order === "random") choice.order = "best"; update(); });
  for (const id of ["search", "where", "source", "label", "seen"]) if (byId(id)) byId(id).addEventListener("input", update);
  document.querySelector(".tools form").addEventListener("submit", (event) => event.preventDefault());
  document.documentElement.classList.add("scripted");
  update();
})();
