// The caption gallery: one view for the notebook, where a kernel answers, and for the static page, where its data does.
//
// root: where it stands. source: page(query, first, count), detail(id), pictures(ids), and with marks mark(mark),
// errors(run): promises. setting: what is known before the first page, see rsvlm.viewing.gallery_data.
function mountGallery(root, source, setting) {
  const shared = { query: startQuery(setting), compared: setting.pair ? [setting.baseline] : [], first: 0, total: 0, items: [], serial: 0 };
  const grid = make("div", { class: "grid", "data-part": "grid" });
  const count = make("span", { class: "count", "data-part": "count", "aria-live": "polite" });
  const nothing = make("p", { class: "nothing", hidden: true }, "No image fits. Clear the search or choose other filters.");
  const trouble = make("p", { class: "trouble", role: "alert", hidden: true });
  const pager = makePager((first) => show(first).then(() => grid.querySelector(".open")?.focus()), setting.size); // to the page's top
  const tools = makeTools(setting, shared, () => show(0));
  const dialog = makeDialog({ source, setting, shared, complain, card: (id) => grid.querySelector(`[data-id="${CSS.escape(id)}"]`),
    turn, marked: (item) => { redraw(item); table.stale(); } });
  const table = makeErrorTable(source, setting, shared);
  tools.append(count);
  root.append(
    make("div", { class: "tools" }, tools),
    make("div", { class: "gallery-wrap" }, trouble, nothing, grid, pager.element, setting.marks ? table.element : null),
    dialog.element,
  );

  function complain(error) {
    trouble.textContent = error ? error.message || String(error) : "";
    trouble.hidden = !error;
  }

  async function show(first) {
    const serial = ++shared.serial;
    grid.setAttribute("aria-busy", "true");
    try {
      const found = await source.page(readQuery(shared), first, setting.size);
      if (serial !== shared.serial) return; // a later question overtook this one
      complain(null);
      Object.assign(shared, { first, total: found.total, items: found.items });
      grid.replaceChildren(...found.items.map((item) => drawCard(item, setting, shared)));
      grid.classList.toggle("compare", shared.compared.length > 0);
      nothing.hidden = found.total > 0;
      count.textContent = `${found.total} of ${setting.images} images`;
      pager.show(first, found.total);
      fillPictures(found.items, serial);
    } catch (error) {
      if (serial === shared.serial) complain(error);
    } finally {
      if (serial === shared.serial) grid.removeAttribute("aria-busy");
    }
  }

  // Words come first; pictures that were not made yet follow, a few at a time, then those of the next page.
  async function fillPictures(items, serial) {
    const missing = items.filter((item) => !item.picture).map((item) => item.id);
    for (let start = 0; start < missing.length; start += 6) {
      if (serial !== shared.serial) return;
      try {
        const { pictures, broken } = await source.pictures(missing.slice(start, start + 6));
        for (const item of items) {
          if (!(item.id in pictures) && !(item.id in broken)) continue;
          item.picture = pictures[item.id] || null;
          item.broken = broken[item.id] || null;
          if (serial === shared.serial) redraw(item);
        }
      } catch (error) {
        return complain(error);
      }
    }
    if (source.prepare && serial === shared.serial && shared.first + setting.size < shared.total)
      source.prepare(readQuery(shared), shared.first + setting.size, setting.size);
  }

  function redraw(item) {
    const old = grid.querySelector(`[data-id="${CSS.escape(item.id)}"]`);
    if (!old) return;
    const focused = old.contains(root.getRootNode().activeElement);
    const fresh = drawCard(item, setting, shared);
    old.replaceWith(fresh);
    if (focused) fresh.querySelector(".open").focus();
  }

  // The page before or behind, for the enlarged view: resolves to the item that is next there, or null.
  async function turn(by) {
    const first = shared.first + by * setting.size;
    if (first < 0 || first >= shared.total) return null;
    await show(first);
    return shared.items[by > 0 ? 0 : shared.items.length - 1] || null;
  }

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".open") && event.target.closest("[data-id]");
    if (card) dialog.open(shared.items.find((item) => item.id === card.dataset.id));
  });
  const onKey = (event) => {
    if (dialog.element.open) return dialog.onKey(event);
    const active = root.getRootNode().activeElement;
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(active)) return;
    const cards = [...grid.querySelectorAll(".open")];
    const at = cards.indexOf(active);
    const across = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (event.key === "/") tools.querySelector("[type=search]").focus();
    else if (event.key === "n" || event.key === "p") pager.turn(event.key === "n" ? 1 : -1);
    else if (step && at >= 0 && cards[at + step]) cards[at + step].focus();
    else return;
    event.preventDefault();
  };
  const listener = setting.whole ? document : root;
  listener.addEventListener("keydown", onKey);
  show(0);
  return { close: () => listener.removeEventListener("keydown", onKey) };
}

function startQuery(setting) {
  return { run: setting.run, baseline: setting.baseline, metric: setting.metric, words: "", place: "said",
    source: "", split: "", label: "", seen: "", language: "", mark: "", low: null, high: null,
    ...(setting.pair ? { measure: "gap", order: "best" } : { measure: "score", order: "random" }) };
}
const readQuery = (shared) => ({ ...shared.query, baseline: baselineOf(shared) });
// Gaps and ticks are against the first run compared with, or else against the usual one.
function baselineOf(shared) {
  const { query, compared } = shared;
  return compared[0] || (query.baseline !== query.run ? query.baseline : null);
}
const scoreOf = (item, run, metric) => {
  const value = run && item.scores[run] ? item.scores[run][metric] : undefined;
  return typeof value === "number" ? value : null;
};
function measured(item, query) {
  const own = scoreOf(item, query.run, query.metric);
  if (query.measure !== "gap") return own;
  const other = scoreOf(item, query.baseline, query.metric);
  return own === null || other === null ? null : Math.round(1e4 * (own - other)) / 1e4; // as rsvlm.viewing.records.DIGITS
}

// A "?" whose sentence opens by mouse, key and touch. name(): of what; setting.terms holds the sentences.
let explained = 0;
function makeWhat(terms, name) {
  const id = `what-shown-${++explained}`;
  const sentence = make("div", { class: "sentence", popover: "", id });
  const button = make("button", { type: "button", class: "what", popovertarget: id }, make("span", {}, "?"));
  function update() {
    const own = name();
    button.hidden = !(terms && terms[own]);
    button.setAttribute("aria-label", `What ${own} means`);
    sentence.replaceChildren(make("b", {}, own), `: ${terms && terms[own]}.`);
  }
  update();
  return { element: make("span", { class: "explained" }, button, sentence), update };
}

// The bar above the pictures

function makeTools(setting, shared, update) {
  const { query } = shared;
  const chooser = (name, label, options, chosen) => options.length < 2 ? null : make("label", {}, `${label} `,
    make("select", { name, "aria-label": label ? null : "Score or gap", onchange: (event) => { query[name] = event.target.value; after(name); } },
      options.map(([value, text]) => make("option", { value, selected: value === chosen }, text))));
  const whats = [];
  const what = (name) => {
    const made = makeWhat(setting.terms, name);
    whats.push(made);
    return made.element;
  };
  const any = (names) => (names.length > 1 ? [["", "all"], ...names.map((name) => [name, name])] : []);
  const known = setting.metrics.length > 0;
  const range = (name, label) => make("label", {}, `${label} `, make("input", { name, type: "number", step: "any", inputmode: "decimal",
    onchange: (event) => { query[name] = event.target.value === "" ? null : Number(event.target.value); update(); } }));
  const orders = known ? ["random", "best", "worst", "median"] : ["random"];
  const segments = make("span", { class: "segments", role: "group", "aria-label": "Order" }, orders.map((order) =>
    make("button", { type: "button", "data-order": order, onclick: () => { query.order = order; after("order"); } })));
  const compare = setting.runs.length > 1 && !setting.pair ? make("details", { class: "menu" }, make("summary", {}, "Compare"),
    make("div", { class: "choices", role: "group", "aria-label": "Compare with" }, setting.runs.map((run) => make("label", {}, make("input", {
      type: "checkbox", name: "compare", value: run, onchange: (event) => compareWith(run, event.target.checked) }), ` ${run}`)))) : null;
  let timer = null;
  const search = make("input", { type: "search", name: "words", placeholder: "search in captions", "aria-label": "Search", autocomplete: "off",
    oninput: (event) => { query.words = event.target.value; clearTimeout(timer); timer = setTimeout(update, setting.whole ? 0 : 150); } });
  const form = make("form", { role: "search", "aria-label": "Choose and order the images", onsubmit: (event) => event.preventDefault() },
    make("label", {}, search),
    chooser("place", "in", [["said", "this run"], ["references", "references"], ["all", "all texts"]], "said"),
    chooser("source", "source", any(setting.sources), ""),
    chooser("split", "split", any(setting.splits), ""),
    chooser("label", "class", setting.labels.length ? [["", "all"], ...setting.labels.map((name) => [name, name])] : [], ""),
    chooser("language", "references in", languageOptions(setting.languages), ""),
    setting.knowsSeen ? chooser("seen", "references", [["", "all"], ["no", "unseen"], ["yes", "seen"]], "") : null,
    setting.knowsSeen ? what(() => (query.seen === "yes" ? "seen" : "unseen")) : null,
    chooser("run", setting.pair ? "experiment" : "run", setting.runs.map((run) => [run, run]), setting.run),
    what(() => query.run),
    compare,
    segments,
    known ? chooser("metric", "by", setting.metrics.map((name) => [name, name]), setting.metric) : null,
    known ? what(() => query.metric) : null,
    known && setting.runs.length > 1 ? chooser("measure", "", [["score", "score"], ["gap", "gap"]], query.measure) : null,
    known && setting.runs.length > 1 ? what(() => "gap") : null,
    known ? make("span", { class: "range", role: "group", "aria-label": "Range of the score" }, range("low", "from"), range("high", "to")) : null,
    setting.marks ? chooser("mark", "marks", [["", "all"], ["any", "marked"], ["none", "not marked"], ...setting.kinds.map((kind) => [kind, kind])], "") : null,
    known ? make("button", { type: "button", class: "plain", onclick: clear }, "Clear") : null,
  );
  function clear() {
    Object.assign(query, startQuery(setting), { run: query.run, metric: query.metric });
    form.reset();
    form.elements.run && (form.elements.run.value = query.run);
    form.elements.metric && (form.elements.metric.value = query.metric);
    shared.compared = [];
    after("order");
  }
  function compareWith(run, on) {
    shared.compared = on ? [...shared.compared, run].slice(-2) : shared.compared.filter((name) => name !== run);
    after("compare");
  }
  function after(name) {
    // Who asks for another metric or a gap wants to see it ordered by that.
    if ((name === "metric" || name === "measure") && query.order === "random") query.order = query.measure === "gap" ? "worst" : "best";
    shared.compared = (setting.pair ? setting.runs : shared.compared).filter((run) => run !== query.run);
    for (const box of form.querySelectorAll("[name=compare]")) {
      box.checked = shared.compared.includes(box.value);
      box.disabled = box.value === query.run;
    }
    relabel();
    for (const one of whats) one.update();
    update();
  }
  function relabel() {
    for (const button of segments.children) {
      const { order } = button.dataset, gain = query.measure === "gap" && { best: "Largest gain", worst: "Largest loss" }[order];
      button.textContent = gain || order[0].toUpperCase() + order.slice(1);
      button.setAttribute("aria-pressed", String(order === query.order));
    }
    const gap = form.querySelector("[name=measure] [value=gap]");
    if (gap) gap.textContent = `gap to ${baselineOf(shared) || "another run"}`;
  }
  relabel();
  const own = form.querySelector(`[name=compare][value="${CSS.escape(query.run)}"]`);
  if (own) own.disabled = true;
  return form;
}

function makePager(go, size) {
  const place = make("span", { "aria-live": "polite" });
  const before = make("button", { type: "button", onclick: () => turn(-1) }, "← Previous");
  const next = make("button", { type: "button", onclick: () => turn(1) }, "Next →");
  const jump = make("input", { type: "number", min: 1, "aria-label": "Page", onchange: () => go((Math.min(pages, Math.max(1, Math.round(Number(jump.value)) || 1)) - 1) * size) });
  const element = make("nav", { class: "pager", "aria-label": "Pages", hidden: true }, before, make("label", {}, "page ", jump), place, next);
  let first = 0, pages = 0;
  function turn(by) {
    const wanted = first + by * size;
    if (wanted >= 0 && wanted < pages * size) go(wanted);
  }
  function show(at, total) {
    first = at;
    pages = Math.ceil(total / size);
    element.hidden = pages < 2;
    before.disabled = at === 0;
    next.disabled = at + size >= total;
    jump.value = at / size + 1;
    jump.max = pages;
    place.textContent = `of ${pages}`;
  }
  return { element, show, turn };
}

// A card

function drawWords(pieces) {
  if (!pieces || pieces.length === 0) return [make("span", { class: "empty" }, "(empty caption)")];
  return pieces.map((piece) => (typeof piece === "string" ? piece : make("mark", { title: "no reference says this" }, piece[0])));
}
const plainWords = (pieces) => (pieces || []).map((piece) => (typeof piece === "string" ? piece : piece[0])).join("");

function drawBars(item, run, baseline, setting) {
  const bars = setting.bars.filter((name) => scoreOf(item, run, name) !== null || scoreOf(item, baseline, name) !== null);
  if (bars.length === 0) return null;
  return make("div", { class: "bars" }, bars.map((name) => {
    const own = scoreOf(item, run, name), other = scoreOf(item, baseline, name);
    const label = `${name} ${showNumber(own)}${other === null ? "" : `, ${baseline} ${showNumber(other)}`}`;
    const part = (value) => Math.min(1, Math.max(0, value / setting.tops[name])).toFixed(3);
    return make("div", { class: "bar", role: "img", "aria-label": label }, make("span", {}, name), make("span", { class: "track" },
      own === null ? null : make("i", { parts: { "--own-part": part(own) } }),
      other === null ? null : make("u", { parts: { "--baseline-part": part(other) } })), make("span", { class: "value" }, showNumber(own)));
  }));
}

function drawPicture(item, setting, run) {
  const words = plainWords(item.said[run]) || "empty caption";
  if (item.broken) return make("span", { class: "blank", role: "img", "aria-label": item.broken }, "picture cannot be read");
  if (!item.picture) return make("span", { class: "blank", "aria-hidden": "true" });
  return make("img", { src: item.picture, alt: `${item.label || "image"} ${item.name}: ${words}`, decoding: "async", loading: "lazy" });
}

// The languages to choose among: all, or one; none where every reference is English.
function languageOptions(named) {
  const codes = Object.keys(named || {}).sort((a, b) => (b === "en") - (a === "en")); // the others stay by code
  return codes.length ? [["", "all languages"], ...codes.map((code) => [code, named[code][0]])] : [];
}

function drawReferences(item, open, wanted, named) {
  const own = wanted && wanted !== "en" ? [] : item.references;
  const foreign = Object.entries(item.languages || {}).filter(([code]) => !wanted || code === wanted);
  const many = own.length || (foreign[0] || ["", []])[1].length;
  const also = own.length ? foreign.map(([code]) => code) : [];
  const count = (times) => (times > 1 ? make("span", { class: "times" }, ` × ${times}`) : null);
  return make("details", { class: "fold references", open: open || Boolean(wanted) },
    make("summary", {}, `${many} ${many === 1 ? "reference" : "distinct references"}${also.length ? `, also in ${also.join(", ")}` : ""}`),
    make("ul", {}, own.map(([text, times]) => make("li", {}, text, count(times))),
      foreign.flatMap(([code, texts]) => texts.map(([text, times]) => make("li", {}, drawForeign(code, text, named), count(times))))));
}

function drawOthers(item, runs, metric, name, open) {
  const said = runs.filter((run) => run in item.said);
  if (said.length === 0) return null;
  return make("details", { class: "fold", open }, make("summary", {}, name || `${said.length} other ${said.length === 1 ? "run" : "runs"}`),
    make("ul", {}, said.map((run) => make("li", {}, make("b", {}, make("span", {}, run), make("span", {}, metric ? `${metric} ${showNumber(scoreOf(item, run, metric))}` : "")),
      drawWords(item.said[run])))));
}

const shownRuns = (setting, shared) => (setting.pair ? setting.runs : [shared.query.run, ...shared.compared]);
function drawRuns(item, setting, shared) {
  const query = readQuery(shared), shown = shownRuns(setting, shared);
  return make("div", { class: "runs" }, shown.map((run) => make("div", { class: run === query.run ? "run own" : "run" },
    shown.length > 1 ? make("h3", {}, run, make("span", {}, setting.metrics.length ? `${query.metric} ${showNumber(scoreOf(item, run, query.metric))}` : "")) : null,
    make("p", { class: "said" }, run in item.said ? drawWords(item.said[run]) : make("span", { class: "empty" }, "(no caption from this run)")),
    drawBars(item, run, shown.length > 1 ? null : query.baseline, setting))));
}

function drawCard(item, setting, shared) {
  const query = readQuery(shared), shown = shownRuns(setting, shared);
  const value = measured(item, query);
  const order = query.order === "random" || value === null ? null
    : query.measure === "gap" ? `gap ${showGap(value)}` : `${query.metric} ${showNumber(value)}`;
  const kinds = item.marks && item.marks[query.run] ? item.marks[query.run].kinds : [];
  return make("article", { class: "card", "data-id": item.id },
    make("button", { type: "button", class: "open", "aria-label": `Enlarge ${item.name}` }, drawPicture(item, setting, query.run),
      make("span", { class: "chip" }, item.label || item.name), order ? make("span", { class: "chip order" }, order) : null,
      kinds.length ? make("span", { class: "chip marks" }, kinds.join(", ")) : null),
    make("div", { class: "body" }, drawRuns(item, setting, shared),
      drawOthers(item, setting.runs.filter((run) => !shown.includes(run)), setting.metrics.length ? query.metric : ""),
      drawReferences(item, false, query.language, setting.languages)));
}

// The enlarged view

function makeDialog({ source, setting, shared, complain, card, turn, marked }) {
  const picture = make("div", { class: "picture" });
  const where = make("span", { "aria-live": "polite" });
  const words = make("div", { class: "about" });
  const button = (label, text, act) => make("button", { type: "button", "aria-label": label, onclick: act }, text);
  const element = make("dialog", { "aria-label": "Enlarged image" }, make("div", { class: "large" }, picture, make("div", { class: "words" },
    make("div", { class: "where" }, where, button("Previous image", "←", () => step(-1)), button("Next image", "→", () => step(1)),
      button("Close", "✕", () => element.close())), words)));
  const marks = setting.marks ? makeMarks(source, setting, shared, marked) : null;
  let item = null, serial = 0;

  async function open(wanted) {
    item = wanted;
    const mine = ++serial, query = readQuery(shared);
    where.textContent = [item.label, item.id, item.split].filter(Boolean).map(isolated).join(" · ");
    picture.replaceChildren(drawPicture(item, setting, query.run));
    const near = make("div", { class: "near" });
    const shown = shownRuns(setting, shared), others = setting.runs.filter((run) => !shown.includes(run));
    words.replaceChildren(...[
      shown.length > 1 ? drawRuns(item, setting, shared)
        : make("p", { class: "said" }, query.run in item.said ? drawWords(item.said[query.run]) : "(no caption from this run)"),
      marks && query.run in item.said ? marks.show(item, query.run) : null,
      setting.metrics.length ? make("div", { class: "scroll", role: "group", tabindex: 0, "aria-label": "Scores" }, drawScores(item, setting, query.run)) : null,
      drawOthers(item, others, setting.metrics.length ? query.metric : "", "What the other runs say", true),
      drawReferences(item, true, query.language, setting.languages), near].filter(Boolean));
    if (!element.open) element.showModal();
    element.scrollTop = 0;
    try {
      const detail = await source.detail(item.id);
      if (mine !== serial) return;
      if (detail.picture) picture.replaceChildren(make("img", { src: detail.picture, alt: `${item.label || "image"} ${item.name}, enlarged` }));
      if (detail.trouble) picture.append(make("p", { class: "trouble" }, detail.trouble));
      near.replaceChildren(...drawNear(detail.near, shown, setting.training));
    } catch (error) {
      if (mine === serial) near.replaceChildren(make("p", { class: "trouble" }, error.message));
    }
  }
  async function step(by) {
    const at = shared.items.indexOf(item) + by;
    const next = shared.items[at] || (await turn(by));
    if (next) open(next);
  }
  element.addEventListener("click", (event) => event.target === element && element.close());
  element.addEventListener("close", () => {
    const back = item && card(item.id);
    if (back) back.querySelector(".open").focus();
  });
  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(element.getRootNode().activeElement)) return;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") step(event.key === "ArrowRight" ? 1 : -1);
    else if (!(marks && marks.onKey(event))) return;
    event.preventDefault();
  }
  return { element, open, onKey };
}

function drawScores(item, setting, run) {
  const table = make("table", { class: "scores" });
  table.createTHead().append(make("tr", {}, make("th", { scope: "col" }, "run"), setting.metrics.map((name) => make("th", { scope: "col" }, name))));
  table.append(make("tbody", {}, setting.runs.filter((name) => name in item.said).map((name) => make("tr", { class: name === run ? "own" : null },
    make("th", { scope: "row" }, name), setting.metrics.map((metric) => make("td", {}, showNumber(scoreOf(item, name, metric))))))));
  return table;
}

// note: whose they are, or why there are none.
function drawNear(near, runs, note) {
  if (!near.length && !note) return [];
  return [make("h3", {}, "Nearest training images"), note ? make("p", { class: "soft small" }, note) : "", make("div", { class: "training" }, near.map((other) => make("figure", {},
    other.picture ? make("img", { src: other.picture, alt: `training image ${other.name}` }) : null,
    make("figcaption", {}, make("b", {}, `${showNumber(other.cosine)} `), other.label || "", other.label ? " · " : "", other.name,
      make("ul", {}, other.captions.map((text) => {
        const copied = runs.filter((run) => (other.copied[run] || []).includes(text));
        return make("li", { class: copied.length ? "copied" : null }, text,
          copied.length ? make("b", {}, ` ← the same words${runs.length > 1 ? `: ${copied.join(", ")}` : ""}`) : null);
      }))))))];
}

// Marks: what a reader found good or wrong

function makeMarks(source, setting, shared, marked) {
  let item = null, run = null;
  const status = make("span", { class: "status", role: "status" });
  const buttons = setting.kinds.filter((kind) => kind !== "note").map((kind, number) => make("button", { type: "button", "data-kind": kind, onclick: () => toggle(kind) },
    make("kbd", {}, String(number + 1)), ` ${kind}`));
  const note = make("input", { type: "text", maxlength: 2000, placeholder: "a note", "aria-label": "Note", onchange: () => write("note", note.value.trim() !== "", note.value.trim()) });
  const element = make("fieldset", { class: "marking" }, make("legend", {}, ""), make("span", { class: "kinds" }, buttons), note, status);
  const own = () => (item.marks[run] = item.marks[run] || { kinds: [], note: "" });
  function draw() {
    for (const button of buttons) button.setAttribute("aria-pressed", String(own().kinds.includes(button.dataset.kind)));
    note.value = own().note;
  }
  async function write(kind, on, text) {
    const to = item, state = own();
    state.kinds = on ? [...new Set([...state.kinds, kind])] : state.kinds.filter((name) => name !== kind);
    if (kind === "note") state.note = text;
    draw();
    marked(to);
    status.textContent = "saving …";
    try {
      await source.mark({ image_id: to.id, run, kind, on: on ? 1 : 0, note: text, caption: plainWords(to.said[run]), source: to.source, label: to.label },
        (message) => { status.textContent = message; });
      status.textContent = "saved";
    } catch (error) {
      status.textContent = error.message;
    }
  }
  const toggle = (kind) => write(kind, !own().kinds.includes(kind), "");
  function onKey(event) {
    const kind = buttons[Number(event.key) - 1];
    if (!kind || !item) return false;
    toggle(kind.dataset.kind);
    return true;
  }
  function show(wanted, of) {
    item = wanted;
    run = of;
    item.marks = item.marks || {};
    element.querySelector("legend").textContent = `Your marks of what the ${run} says`;
    status.textContent = "";
    draw();
    return element;
  }
  return { show, onKey };
}

function makeErrorTable(source, setting, shared) {
  const body = make("div", { class: "scroll", role: "group", tabindex: 0, "aria-label": "Error table" });
  const element = make("details", { class: "notes errors", ontoggle: () => element.open && fill() }, make("summary", {}, "Error table: marks by class and kind"), body);
  async function fill() {
    try {
      const { columns, rows } = await source.errors(shared.query.run);
      const table = make("table", { class: "scores" }, make("caption", {}, `Marks of the ${shared.query.run}, of everyone; an image counts once`));
      table.createTHead().append(make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name))));
      table.append(make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, at) => (at ? make("td", {}, cell === null ? "–" : String(cell)) : make("th", { scope: "row" }, cell)))))));
      body.replaceChildren(rows.length > 1 ? table : make("p", { class: "soft" }, "No marks yet. Enlarge an image and mark it."));
    } catch (error) {
      body.replaceChildren(make("p", { class: "trouble" }, error.message));
    }
  }
  return { element, stale: () => element.open && fill() };
}
