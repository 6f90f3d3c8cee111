// The panel beside a scene's map: search, surface, hits, a chosen window, a box, export; and the scenes of an archive.
// ipyleaflet gives its numbers a white square and its map a light ground; neither can be said in Python.
const MAP_STYLE = `.rsvlm-scene-map .leaflet-div-icon { background: none; border: 0; }
.rsvlm-scene-map .leaflet-container { background: var(--jp-layout-color2, #e7ebef); border-radius: 10px; }
.rsvlm-scene-map .leaflet-draw-toolbar a { background-color: #fff; }
.rsvlm-scene-map :is(.leaflet-container, .leaflet-marker-icon, .leaflet-bar a):focus-visible { outline: 3px solid var(--jp-brand-color1, #0072b2); outline-offset: 2px; }`;
const REST = 500; // milliseconds that a chosen window must stay before it is captioned: that takes seconds

// JupyterLab's keys stay outside the map, and the map's keys inside: a notebook takes the focus at any key that it sees.
// Leaflet listens at the document, so that it gets a copy that goes past the notebook.
function passOn(event) {
  event.stopPropagation();
  if (!event.target.closest(".leaflet-container")) return;
  if (event.type === "keydown" && event.key === "Enter" && event.target.matches(".leaflet-marker-icon")) event.target.click(); // Leaflet leaves that to popups
  if (!document.documentElement.dispatchEvent(new KeyboardEvent(event.type, event))) event.preventDefault();
}

function mountPanel(root, ask, setting, pushes) {
  const trouble = make("p", { class: "trouble", role: "alert", hidden: true });
  const status = make("p", { class: "found", role: "status" });
  const bar = make("progress", { hidden: true, "aria-label": "windows embedded" });
  const about = make("div", {});
  const input = make("input", { type: "search", "aria-label": "What to look for", placeholder: setting.examples[0] || "", autocomplete: "off" });
  const plain = (text, act, more = {}) => make("button", { type: "button", class: "plain", onclick: act, ...more }, text);
  const state = { window: null, box: null, threshold: null, serial: 0, timer: null, hits: [] };

  function fail(message) {
    status.textContent = "";
    bar.hidden = true;
    trouble.textContent = message;
    trouble.hidden = false;
  }
  function onPart(part) {
    if (part.status) status.textContent = part.status;
    bar.hidden = !part.total;
    if (part.total) Object.assign(bar, { value: part.done, max: part.total });
  }
  // One question of the reader's: what went wrong before is gone, what goes wrong is told.
  async function run(what, given, show, busy = "") {
    trouble.hidden = true;
    if (busy) status.textContent = busy;
    try {
      const answer = await ask(what, given, { onPart });
      bar.hidden = true;
      if (busy) status.textContent = "";
      show(answer);
    } catch (error) {
      fail(error.message);
    }
  }

  // Search
  const form = make("form", { class: "search", role: "search", onsubmit: (event) => { event.preventDefault(); search(input.value); } },
    input, make("button", { type: "submit", class: "plain" }, "Search"));
  const examples = make("p", { class: "examples", role: "group", "aria-label": "Searches to try" }, "Try: ",
    setting.examples.map((text) => make("button", { type: "button", onclick: () => { input.value = text; search(text); } }, text)));
  const search = (text) => run("search", { text }, fill, "searching …");

  // Surface
  const ends = [make("span", {}), make("span", {})];
  const ramp = make("span", { class: "ramp", role: "img", style: `background:linear-gradient(to right,${setting.colours.join(",")})` });
  const amount = make("output", {}, `${setting.opacity} %`);
  const opacity = make("input", { type: "range", min: 0, max: 100, step: 5, value: setting.opacity, oninput: () => {
    amount.textContent = `${opacity.value} %`;
    clearTimeout(opacity.timer);
    opacity.timer = setTimeout(() => run("opacity", { value: Number(opacity.value) }, () => {}), 60);
  } });
  const threshold = make("input", { type: "number", step: 0.005 });
  const outlined = make("span", { class: "soft number", role: "status" });
  const written = make("p", { class: "facts", role: "status" });
  const exported = (what) => () => run("export", { what, threshold: Number(threshold.value) }, (answer) => { written.textContent = `written: ${answer.path}`; });
  const surface = make("div", { hidden: true, role: "group", "aria-label": "The surface of similarity" },
    make("div", { class: "legend" }, ends[0], ramp, ends[1], make("label", { class: "row" }, "opacity ", opacity, amount)));
  const more = make("details", { class: "fold", hidden: true }, make("summary", {}, "Outline and export"),
    make("div", { class: "row" }, make("label", {}, "similar by at least ", threshold), plain("Outline", () => run("outline", { threshold: Number(threshold.value) }, (answer) => { outlined.textContent = answer.words; })), outlined),
    make("div", { class: "row", role: "group", "aria-label": "Export" }, plain("Hits (GeoJSON)", exported("hits")), plain("Outline (GeoJSON)", exported("outline")), plain("Surface (GeoTIFF)", exported("surface"))),
    written);

  // Hits
  const hits = make("ol", { class: "hits", tabindex: 0, "aria-label": "Places found, best first" });
  const found = make("section", { hidden: true }, make("h3", {}), hits);
  const same = (one, other) => ["left", "top", "width", "height"].every((key) => one[key] === other[key]) && (one.scene || "") === (other.scene || "");
  function drawHit(hit) {
    const label = `${hit.rank}: ${hit.scene ? `${hit.scene}, ` : ""}${hit.place}, similarity ${showNumber(hit.score, 3)}`;
    return make("li", { class: "hit" },
      make("button", { type: "button", class: "thumb", "aria-label": `Show ${label}`, onclick: () => openHit(hit) },
        make("img", { src: hit.picture, alt: "" }), make("span", { class: "rank" }, hit.rank)),
      make("div", {}, make("b", { class: "number" }, showNumber(hit.score, 3)), make("span", { class: "soft" }, ` ${hit.scene ? `${isolated(hit.scene)} · ` : ""}${hit.place}`)));
  }
  function openHit(hit) {
    const { scene, ...window } = hit;
    const go = () => { choose(window); run("go", { window }, () => {}); };
    if (!scene) return go();
    openScene(scene, go);
  }
  const openScene = (scene, then = () => {}) => run("open", { scene }, (answer) => { if (answer.found) fill(answer.found); then(); }, "opening …");
  function fill(answer) {
    state.hits = answer.hits;
    found.hidden = false;
    found.querySelector("h3").textContent = answer.hits.length ? `“${isolated(answer.query)}”` : `Nothing found for “${isolated(answer.query)}”`;
    hits.replaceChildren(...answer.hits.map(drawHit));
    hits.scrollTop = 0;
    status.textContent = answer.words;
    if (answer.scenes) drawScenes(answer.scenes);
    detail.hidden = true;
    surface.hidden = answer.low === undefined;
    more.hidden = surface.hidden;
    if (surface.hidden) return;
    ends[0].textContent = `≤ ${showNumber(answer.low, 3)}`;
    ends[1].textContent = showNumber(answer.high, 3);
    ramp.setAttribute("aria-label", `Colours of the surface, from dark for a similarity of ${showNumber(answer.low, 3)} and below to bright for ${showNumber(answer.high, 3)}`);
    threshold.value = answer.threshold;
    outlined.textContent = written.textContent = "";
  }

  // A chosen window
  const detail = make("section", { hidden: true });
  async function choose(hit) {
    const window = { left: hit.left, top: hit.top, width: hit.width, height: hit.height };
    const mine = ++state.serial;
    clearTimeout(state.timer);
    trouble.hidden = true;
    [...hits.children].forEach((item, number) => item.classList.toggle("chosen", same(state.hits[number], hit)));
    [...hits.children].find((item) => item.classList.contains("chosen"))?.scrollIntoView({ block: "nearest" });
    try {
      const answer = await ask("window", { window }, { onPart });
      if (mine !== state.serial) return;
      status.textContent = "";
      drawDetail(answer, state.hits.find((one) => same(one, hit)));
      if (setting.captions) state.timer = setTimeout(() => describe(window, detail, mine), REST);
    } catch (error) {
      if (mine === state.serial) fail(error.message);
    }
  }
  function drawDetail(answer, hit) {
    detail.hidden = false;
    detail.setAttribute("aria-label", "The chosen window");
    const said = make("div", { class: "words" }, setting.captions ? make("p", { class: "soft" }, "captioning …") : null);
    const like = plain("Find its like", () => run("like", { window: answer.window }, fill, "searching …"));
    detail.replaceChildren(...[
      make("h3", {}, hit ? `Hit ${hit.rank}` : "The chosen window"),
      make("div", { class: "detail" }, make("img", { src: answer.picture, alt: `The window at ${answer.place}` }),
        make("div", {}, said, make("p", { class: "facts" }, [answer.score === null ? null : `similarity ${showNumber(answer.score, 3)}`, answer.place, answer.ground].filter(Boolean).join(" · ")), make("div", { class: "row" }, like))),
      make("div", { class: "around" }),
    ]);
  }
  const drawNear = (near) => make("details", { open: true }, make("summary", {}, "Nearest training images"), make("ul", { class: "near" }, near.map((other) => make("li", {},
    other.picture ? make("img", { src: other.picture, alt: "" }) : null, make("b", { class: "number" }, showNumber(other.score)), ` ${other.captions[0] || other.id}`))));
  async function describe(window, place, mine) {
    const said = place.querySelector(".words");
    said.replaceChildren(make("p", { class: "soft" }, "captioning …"));
    try {
      const answer = await ask("caption", { window }, { onPart });
      status.textContent = "";
      if (mine !== undefined && mine !== state.serial) return;
      said.replaceChildren(...[
        answer.warning ? make("p", { class: "warning", role: "alert" }, answer.warning) : null,
        make("p", { class: "said", role: "status" }, answer.text || "(empty caption)"),
        answer.parts.length ? make("ul", { class: "parts", "aria-label": "Sentences; each shows its windows on the map" }, answer.parts.map((part) => make("li", {},
          make("button", { type: "button", onclick: () => run("mark", { windows: part.windows }, () => {}) }, part.text)))) : null,
      ].filter(Boolean));
      place.querySelector(".around").replaceChildren(drawNear(answer.near));
    } catch (error) {
      if (mine !== undefined && mine !== state.serial) return;
      said.replaceChildren();
      fail(error.message);
    }
  }

  // A box
  const box = make("section", { "aria-label": "A box" });
  function drawBox(answer) {
    trouble.hidden = true;
    const view = plain("Take what the map shows", () => run("view", {}, drawBox));
    if (!answer) {
      return box.replaceChildren(make("div", { class: "row" }, make("span", { class: "soft" }, "Draw a box on the map (the square in its corner), or"), view));
    }
    const words = make("div", { class: "words" });
    box.replaceChildren(...[
      make("h3", {}, "Box"), make("p", { class: "facts" }, answer.ground), words, make("div", { class: "around" }),
      make("div", { class: "row" },
        setting.captions ? plain("Caption it", () => { trouble.hidden = true; describe(answer.window, box); }) : null,
        plain("Find its like", () => run("like", { window: answer.window }, fill, "searching …")),
        view, plain("Clear", () => run("clear_box", {}, () => drawBox(null)))),
    ]);
  }

  // An archive
  const scenes = make("section", { hidden: true, "aria-label": "Scenes of the archive" });
  const list = make("ol", { class: "scenes", tabindex: 0, "aria-label": "Scenes" });
  const count = make("p", { class: "facts", role: "status" });
  const filter = {
    start: make("input", { type: "date" }), end: make("input", { type: "date" }),
    cloud: make("input", { type: "number", min: 0, max: 100, step: 5 }), view: make("input", { type: "checkbox" }),
  };
  const filters = make("div", { class: "filters", role: "group", "aria-label": "Which scenes", onchange: () => narrow() },
    make("label", {}, "from", filter.start), make("label", {}, "to", filter.end), make("label", {}, "clouds below, %", filter.cloud),
    make("label", { class: "tick" }, filter.view, "where the map looks"));
  const back = plain("← All scenes", () => run("back", {}, (answer) => { if (answer.found) fill(answer.found); else narrow(); }), { hidden: true });
  const narrow = () => run("scenes", { start: filter.start.value, end: filter.end.value, cloud: filter.cloud.value === "" ? null : Number(filter.cloud.value), view: filter.view.checked }, (answer) => drawScenes(answer));
  function drawScenes(answer) {
    count.textContent = answer.words;
    list.replaceChildren(...answer.scenes.map((scene) => make("li", {}, make("button", { type: "button", onclick: () => openScene(scene.name) },
      make("span", {}, scene.name), make("span", { class: "soft" }, [typeof scene.score === "number" ? showNumber(scene.score, 3) : null, scene.date, scene.cloud === null ? null : `${showNumber(scene.cloud, 0)} % clouds`].filter(Boolean).join(" · "))))));
  }

  function drawScene(own) {
    about.replaceChildren(...[
      own.scene ? make("h2", {}, own.scene.name) : make("h2", {}, own.archive ? own.archive.name : "No scene"),
      own.scene ? make("p", { class: "facts" }, own.scene.facts.join(" · ")) : null,
      ...(own.scene || own.archive || { notes: [] }).notes.map((note) => make("p", { class: "warning" }, note)),
    ].filter(Boolean));
    const open = Boolean(own.scene || own.archive);
    for (const part of [form, examples]) part.hidden = !open;
    box.hidden = !own.scene;
    whole.hidden = !open;
    scenes.hidden = !own.archive || Boolean(own.scene);
    back.hidden = !(own.archive && own.scene);
    for (const part of [detail, surface, more, found]) part.hidden = true;
    drawBox(null);
    if (own.trouble) fail(own.trouble);
    whole.textContent = own.scene ? "Whole scene" : "All footprints";
  }

  const whole = plain("Whole scene", () => run("whole", {}, () => {}));
  scenes.append(make("h3", {}, "Scenes"), filters, count, list);
  root.append(make("div", { class: "panel" }, about, make("div", { class: "row" }, back, whole), form, examples, trouble, status, bar, surface, found, detail, more, box, scenes));
  drawScene(setting);

  pushes((push) => {
    if (push.window) choose(push.window);
    if (push.box) drawBox(push.box);
    if (push.trouble) fail(push.trouble);
    if (push.open) openScene(push.open);
    if (push.hit) openHit(push.hit);
  });
  if (setting.archive && !setting.scene) narrow();
  return { drawScene };
}

export default openWidget(({ model, el, shell, ask }) => {
  let told = () => {};
  const receive = (message) => { if (message.push) told(message.push); };
  const { drawScene } = mountPanel(shell, ask, model.get("setting"), (take) => { told = take; });
  const follow = () => drawScene(model.get("setting"));
  model.on("msg:custom", receive);
  model.on("change:setting", follow);
  let frame = 0;
  const settle = () => {
    const whole = el.closest(".rsvlm-scene-map");
    if (!whole) return void (frame = requestAnimationFrame(settle)); // not in the page yet
    whole.setAttribute("data-lm-suppress-shortcuts", "true");
    if (whole.querySelector(":scope > style")) return;
    whole.append(make("style", {}, MAP_STYLE));
    for (const kind of ["keydown", "keyup", "keypress"]) whole.addEventListener(kind, passOn);
  };
  settle();
  return () => { cancelAnimationFrame(frame); model.off("msg:custom", receive); model.off("change:setting", follow); };
});
