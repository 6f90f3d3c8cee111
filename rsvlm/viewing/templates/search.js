// The search box: text, images like one, a file from outside.
function drawHit(hit, open) {
  const label = `${hit.label || "image"} ${hit.name}${hit.right ? ", a right answer" : ""}`;
  return make("li", { class: hit.right ? "hit right" : "hit" },
    make("button", { type: "button", class: "thumb", "aria-label": `${label}: images like it`, title: (hit.references || [])[0] || null, onclick: open },
      hit.picture ? make("img", { src: hit.picture, alt: `${label}: ${(hit.references || [])[0] || ""}` }) : make("span", { class: "blank" }, hit.trouble || "")),
    make("span", { class: "under" }, hit.right ? "✓ right " : "", typeof hit.score === "number" ? make("b", {}, showNumber(hit.score)) : null, ` ${hit.label || hit.name}`),
    hit.said ? make("span", { class: "under soft", title: hit.said.run }, hit.said.text) : null);
}

function countReferences(image) {
  const codes = Object.keys(image.languages);
  return `${image.references.length} references${codes.length ? `, also in ${codes.join(", ")}` : ""}`;
}

function mountSearch(root, ask, setting) {
  const status = make("p", { class: "found", role: "status" });
  const trouble = make("p", { class: "trouble", role: "alert", hidden: true });
  const subject = make("div", { class: "subject", hidden: true, tabindex: -1, role: "group", "aria-label": "The image asked about" });
  const hits = make("ol", { class: "hits", "aria-label": "Images found" });
  const input = make("input", { type: "search", name: "text", placeholder: setting.examples[0] || "many boats in a harbour", "aria-label": "What to look for", autocomplete: "off" });
  const select = (name, label, options, chosen) => make("label", {}, `${label} `, make("select", { name, onchange: () => again() },
    options.map(([value, text, title]) => make("option", { value, title, selected: value === chosen }, text))));
  const form = make("form", { role: "search", onsubmit: (event) => { event.preventDefault(); search(input.value); } },
    make("label", { class: "wide" }, input),
    select("method", "by", setting.methods.map((method) => [method.id, method.name, method.note]), setting.methods[0].id),
    select("split", "in", [["", "all images"], ...setting.splits.map((split) => [split, split])], setting.split),
    (setting.languages || []).length ? select("language", "asked in", setting.languages.map((code) => [code, code === "any" ? "any language" : (setting.named[code] || [code])[0]]), setting.languages[0]) : null,
    make("button", { type: "submit", class: "plain" }, "Search"),
    takeFiles(root, drop, fail));
  const examples = make("p", { class: "examples", role: "group", "aria-label": "Searches to try" }, "Try: ", setting.examples.map((text) => make("button", { type: "button", onclick: () => { input.value = text; search(text); } }, text)));
  root.append(make("div", { class: "tools" }, form), make("div", { class: "gallery-wrap" }, examples, trouble, subject, status, hits));
  const value = (name) => (form.elements[name] || { value: "en" }).value;
  let serial = 0, repeat = null, timer = null;
  const again = () => repeat && repeat();

  async function run(what, given, buffers, show) {
    const mine = ++serial;
    clearTimeout(timer); // what was typed before is asked, or passed over
    repeat = () => run(what, { ...given, split: value("split"), ...("method" in given ? { method: value("method"), language: value("language") } : {}) }, buffers, show);
    trouble.hidden = true;
    status.textContent = what === "drop" ? "reading the file …" : "searching …";
    try {
      const answer = await ask(what, given, { buffers, onPart: (part) => { if (mine === serial) status.textContent = part.status; } });
      if (mine === serial) keepingFocus(() => show(answer));
    } catch (error) {
      if (mine === serial) fail(error.message);
    }
  }
  // Who went ahead by key while an answer was awaited stands on what it replaces: the focus goes to the hit in that place, or to the field.
  function keepingFocus(redraw) {
    const focused = () => root.getRootNode().activeElement;
    const place = [...hits.children].findIndex((hit) => hit.contains(focused()));
    const concerned = place >= 0 || subject.contains(focused());
    redraw();
    const lost = !focused() || (subject.hidden && subject.contains(focused()));
    if (concerned && lost) ([...hits.querySelectorAll("button")].slice(0, place + 1).at(-1) || input).focus({ preventScroll: true });
  }
  // What was found before is no answer to what failed: it goes.
  function fail(message) {
    serial += 1;
    status.textContent = "";
    keepingFocus(() => {
      subject.hidden = true;
      hits.replaceChildren();
    });
    trouble.textContent = message;
    trouble.hidden = false;
  }
  function fill(answer, said) {
    status.textContent = said;
    hits.replaceChildren(...answer.hits.map((hit) => drawHit(hit, () => like(hit.id))));
  }
  const took = (answer) => `${answer.searched} images searched in ${showNumber(answer.search, 1)} ms${answer.encode ? `, after ${Math.round(answer.encode)} ms for the text` : ""}`;

  function search(text) {
    if (!text.trim()) return;
    run("search", { text, method: value("method"), split: value("split"), language: value("language") }, [], (answer) => {
      subject.hidden = true;
      const right = answer.right ? `; ${answer.right} ${answer.right === 1 ? "image carries" : "images carry"} just this caption${answer.outside ? `, ${answer.outside} of them further down` : ""}` : "";
      const told = [answer.language && answer.language !== "en" ? `read as ${answer.language}` : "", ...(answer.notes || [])].filter(Boolean).join("; ");
      fill(answer, answer.hits.length ? took(answer) + right + (told ? `; ${told}` : "") : "Nothing found.");
    });
  }
  function about(image, captions, warning) {
    subject.hidden = false;
    subject.replaceChildren(...[
      image.picture ? make("img", { src: image.picture, alt: image.name }) : null,
      make("div", {}, make("p", { class: "soft" }, [image.label, image.id, image.split].filter(Boolean).join(" · ")),
        warning ? make("p", { class: "warning", role: "alert" }, warning) : null,
        captions && captions.length === 0 ? make("p", { class: "soft" }, "No captioner was trained: only the images like it are found.") : null,
        (captions || (image.said ? [image.said] : [])).map(({ run, text }) => make("p", { class: "said" }, make("b", {}, `${run} `), text || "(empty caption)")),
        image.references.length ? make("details", {}, make("summary", {}, countReferences(image)), make("ul", {}, image.references.map((text) => make("li", {}, text)),
          Object.entries(image.languages).flatMap(([code, texts]) => texts.map((text) => make("li", {}, drawForeign(code, text, setting.named)))))) : null,
        input.value.trim() ? make("button", { type: "button", class: "plain", onclick: () => { input.focus(); search(input.value); } }, "← Back to the search") : null)].filter(Boolean));
  }
  const like = (image_id) => run("similar", { image_id, split: value("split") }, [], (answer) => {
    about(answer.image, null);
    fill(answer, `Images like it, by the dual encoder: ${took(answer)}`);
    subject.focus({ preventScroll: true }); // the picture that was pressed is gone, and the focus with it
    subject.scrollIntoView({ block: "nearest" });
  });
  function drop(name, content) {
    subject.hidden = true;
    hits.replaceChildren();
    run("drop", { name, split: value("split") }, [content], (answer) => {
      about(answer.image, answer.captions, answer.warning);
      fill(answer, `Images like it, by the dual encoder: ${took(answer)}`);
    });
  }
  // Typing searches as well, once it rests: the dual encoder answers in a moment.
  input.addEventListener("input", () => { clearTimeout(timer); if (value("method") === "dual_encoder") timer = setTimeout(() => search(input.value), 350); });
}

export default openWidget(({ model, shell, ask }) => mountSearch(shell, ask, model.get("setting")));
