// The dialogue pane: images and text in any order, answers while they are made.
function drawTurn(turn) {
  const foreign = turn.language && turn.language !== "en" && turn.words;
  const words = make("span", { class: "words" }, foreign ? drawForeign(turn.language, turn.words, turn.named) : turn.words);
  const images = (turn.images || []).map((image) => make("figure", {},
    image.picture ? make("img", { src: image.picture, alt: `${image.label || "image"} ${image.name}` }) : make("span", { class: "blank" }, image.trouble || ""),
    make("figcaption", {}, typeof image.score === "number" ? make("b", {}, `${showNumber(image.score)} `) : null, image.label || "", image.label ? " · " : "", image.name)));
  const element = make("li", { class: `turn ${turn.who}` }, make("b", { class: "who" }, turn.who === "you" ? "You" : "Model"), " ", words,
    images.length ? make("div", { class: "images" }, images) : null,
    turn.note ? make("p", { class: "warning" }, turn.note) : null);
  return { element, words };
}

function mountDialogue(root, ask, setting) {
  const turns = make("ol", { class: "turns", "aria-live": "polite", "aria-label": "Dialogue", tabindex: 0 });
  const trouble = make("p", { class: "trouble", role: "alert", hidden: true });
  const status = make("span", { class: "soft", role: "status" });
  const offers = make("div", { class: "offers", role: "group", "aria-label": "Images to give", hidden: true });
  const unclear = make("div", { class: "unclear", role: "alert", hidden: true });
  const find = make("input", { type: "search", name: "find", placeholder: "an image: its name, class or words of its captions", "aria-label": "Find an image to give", autocomplete: "off" });
  const text = make("textarea", { name: "text", rows: 2, placeholder: "Ask for words about the image, or for images of something. Enter sends.", "aria-label": "What you say" });
  const button = (label, act, title) => make("button", { type: "button", class: "plain", title: title || null, onclick: act }, label);
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); say(text.value, "auto"); } },
    make("div", { class: "row" }, find, button("Look up", offer), takeFiles(root, (name, content) => give("file", { name }, [content]), fail)), offers,
    make("div", { class: "row" }, text, make("button", { type: "submit", class: "plain" }, "Send")), unclear,
    make("div", { class: "row" }, button("Describe the image", () => say(text.value, "words"), "Words about the last image, whatever the text says"),
      button("Find images", () => say(text.value, "images"), "Images for the description you wrote"), make("span", { class: "gap" }), status,
      button("Export", () => queue(() => run("export", {}, ({ path }) => { said = `written: ${path}`; }))), button("Start afresh", startAfresh)),
    make("p", { class: "examples", role: "group", "aria-label": "Things to say" }, "Try: ", setting.examples.map((words) => make("button", { type: "button", onclick: () => { text.value = words; text.focus(); } }, words))));
  root.append(make("div", { class: "chat" }, make("details", { class: "notes", open: innerWidth > 700 }, make("summary", {}, "What it can and can't do"), make("ul", {}, setting.limits.map((line) => make("li", {}, line)))),
    turns, trouble, form));
  let busy = false, said = "";
  const waiting = []; // what is done when the answer that is being made is there, in order

  async function queue(job) {
    waiting.push(job);
    if (busy) return;
    busy = true;
    while (waiting.length) {
      said = "";
      trouble.hidden = true;
      try { await waiting.shift()(); } catch (error) { fail(error.message); }
    }
    busy = false;
    status.textContent = said;
  }
  async function run(what, given, done, options = {}) {
    done(await ask(what, given, options));
  }
  function fail(message) {
    trouble.textContent = message;
    trouble.hidden = false;
  }
  function add(turn) {
    const drawn = drawTurn(turn);
    turns.append(drawn.element);
    turns.scrollTop = turns.scrollHeight;
    return drawn;
  }
  function say(words, wants) {
    words = words.trim();
    if (!words && wants === "images") { text.focus(); return status.textContent = "Write what the images are to show."; }
    unclear.hidden = true;
    if (words === text.value.trim()) text.value = "";
    const mine = add({ who: "you", words: words || setting.prompt });
    const answering = () => answer(words, wants, mine);
    if (busy) {
      mine.element.classList.add("waiting");
      mine.element.append(make("span", { class: "queued" }, make("i", {}, "waits for the answer "), make("button", { type: "button", class: "plain", onclick: () => { cancel(answering, mine.element); text.focus(); } }, "Cancel")));
    }
    queue(answering);
  }
  function cancel(job, element) {
    const place = waiting.indexOf(job);
    if (place >= 0) waiting.splice(place, 1);
    element.remove();
  }
  async function answer(words, wants, mine) {
    status.textContent = "answering …";
    mine.element.classList.remove("waiting");
    mine.element.querySelector(".queued")?.remove();
    const drawn = drawTurn({ who: "model", words: "…" });
    mine.element.after(drawn.element);
    turns.setAttribute("aria-busy", "true"); // read out once, when it is whole
    const takeBack = () => { mine.element.remove(); drawn.element.remove(); text.value = [words, text.value].filter(Boolean).join("\n"); };
    try {
      await run("say", { text: words, wants }, (turn) => {
        if (turn.unclear) { takeBack(); offerInstead(turn, words); } else drawn.element.replaceWith(drawTurn(turn).element);
      }, { onPart: (part) => { drawn.words.textContent = `${isolated(part.words)} …`; } });
    } catch (error) {
      takeBack();
      throw error;
    } finally {
      turns.removeAttribute("aria-busy");
      if (!waiting.length) turns.scrollTop = turns.scrollHeight;
    }
  }
  const short = (words) => (words.length > 60 ? `${words.slice(0, 58)} …` : words);
  const labels = { words: () => "Describe the image", answer: () => "Answer it from the image", images: (words) => `Find images of “${isolated(short(words))}”`, free: () => "Let the model decide" };
  function offerInstead({ unclear: why, offers: instead }, words) {
    unclear.replaceChildren(make("p", {}, why), make("div", { class: "row" }, instead.map((other) => button(labels[other.wants](other.text), () => {
      if (text.value.trim() === words) text.value = "";
      say(other.text, other.wants);
      text.focus();
    }))));
    unclear.hidden = false;
    unclear.scrollIntoView({ block: "nearest" });
  }
  function startAfresh() {
    waiting.length = 0;
    unclear.hidden = true;
    queue(() => run("afresh", {}, () => { turns.replaceChildren(); text.focus(); }));
  }
  function offer() {
    run("find", { words: find.value }, (found) => {
      offers.hidden = false;
      offers.replaceChildren(...(found.length ? found.map((image) => make("button", { type: "button", class: "offer", "aria-label": `Give ${image.label || "image"} ${image.name}`, title: image.id,
        onclick: () => give("give", { image_id: image.id }) }, image.picture ? make("img", { src: image.picture, alt: "" }) : image.name, make("span", {}, image.label || image.name))) : [make("span", { class: "soft" }, "No image has these words.")]));
    }).catch((error) => fail(error.message));
  }
  function give(what, given, buffers = []) {
    unclear.hidden = true;
    queue(() => { status.textContent = "looking at it …"; return run(what, given, (turn) => { add(turn); offers.hidden = true; text.focus(); }, { buffers }); });
  }
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); offer(); } });
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(text.value, "auto"); } });
  queue(() => run("turns", {}, (all) => all.forEach(add)));
}

export default openWidget(({ model, shell, ask }) => mountDialogue(shell, ask, model.get("setting")));
