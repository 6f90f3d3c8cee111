// The dialogue pane: images and text in any order, answers while they are made.
function drawTurn(turn) {
  const words = make("span", { class: "words" }, turn.words);
  const images = (turn.images || []).map((image) => make("figure", {},
    image.picture ? make("img", { src: image.picture, alt: `${image.label || "image"} ${image.name}` }) : make("span", { class: "blank" }, image.trouble || ""),
    make("figcaption", {}, typeof image.score === "number" ? make("b", {}, `${showNumber(image.score)} `) : null, image.label ? `${image.label} · ` : "", image.name)));
  const element = make("li", { class: `turn ${turn.who}` }, make("b", { class: "who" }, turn.who === "you" ? "You" : "Model"), words,
    images.length ? make("div", { class: "images" }, images) : null);
  return { element, words };
}

function mountDialogue(root, ask, setting) {
  const turns = make("ol", { class: "turns", "aria-live": "polite", "aria-label": "Dialogue" });
  const trouble = make("p", { class: "trouble", role: "alert", hidden: true });
  const status = make("span", { class: "soft", role: "status" });
  const offers = make("div", { class: "offers", hidden: true });
  const find = make("input", { type: "search", name: "find", placeholder: "an image: its name, class or words of its captions", "aria-label": "Find an image to give", autocomplete: "off" });
  const text = make("textarea", { name: "text", rows: 2, placeholder: "Say something about the image, or ask for one. Enter sends.", "aria-label": "What you say" });
  const send = make("button", { type: "submit", class: "plain" }, "Send");
  const button = (label, act) => make("button", { type: "button", class: "plain", onclick: act }, label);
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); say(text.value); } },
    make("div", { class: "row" }, find, button("Find", offer)), offers,
    make("div", { class: "row" }, text, send),
    make("div", { class: "row" }, setting.prompts.map((prompt) => button(prompt, () => say(prompt))), make("span", { class: "gap" }), status,
      button("Export", () => run("export", {}, ({ path }) => { status.textContent = `written: ${path}`; })), button("Start afresh", () => run("afresh", {}, () => { turns.replaceChildren(); status.textContent = ""; text.focus(); }))));
  root.append(make("div", { class: "chat" }, make("details", { class: "notes", open: true }, make("summary", {}, "What it can't do"), make("ul", {}, setting.limits.map((line) => make("li", {}, line)))),
    turns, trouble, form));
  let busy = false;

  async function run(what, given, done, onPart) {
    trouble.hidden = true;
    try {
      done(await ask(what, given, { onPart }));
    } catch (error) {
      trouble.textContent = error.message;
      trouble.hidden = false;
      throw error;
    }
  }
  function add(turn) {
    const drawn = drawTurn(turn);
    turns.append(drawn.element);
    drawn.element.scrollIntoView({ block: "nearest" });
    return drawn;
  }
  async function say(words) {
    if (busy || (!words.trim() && turns.children.length === 0)) return;
    busy = true;
    send.disabled = true;
    status.textContent = "answering …";
    const asked = words.trim() ? add({ who: "you", words: words.trim() }) : null;
    const answer = add({ who: "model", words: "…" });
    answer.element.setAttribute("aria-busy", "true");
    if (words === text.value) text.value = "";
    try {
      await run("say", { text: words }, (turn) => answer.element.replaceWith(drawTurn(turn).element), (part) => { answer.words.textContent = `${part.words} …`; });
    } catch (error) {
      answer.element.remove();
      if (asked) asked.element.remove();
      text.value = words;
    }
    turns.lastElementChild && turns.lastElementChild.scrollIntoView({ block: "nearest" });
    busy = false;
    send.disabled = false;
    status.textContent = "";
  }
  const quietly = (promise) => promise.catch(() => {}); // already said in the pane
  function offer() {
    quietly(run("find", { words: find.value }, (found) => {
      offers.hidden = false;
      offers.replaceChildren(...(found.length ? found.map((image) => make("button", { type: "button", class: "offer", "aria-label": `Give ${image.label || "image"} ${image.name}`, title: image.id,
        onclick: () => give(image.id) }, image.picture ? make("img", { src: image.picture, alt: "" }) : image.name, make("span", {}, image.label || image.name))) : [make("span", { class: "soft" }, "No image has these words.")]));
    }));
  }
  function give(image_id) {
    quietly(run("give", { image_id }, (turn) => { add(turn); offers.hidden = true; text.focus(); }));
  }
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); offer(); } });
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(text.value); } });
  quietly(run("turns", {}, (said) => said.forEach(add)));
}

export default {
  render({ model, el }) {
    const { root, close } = openRoot(el, model.get("sheet"));
    const kernel = openKernel(model);
    const shell = make("div", { class: "shell scripted" });
    const note = make("p", { class: "silent", role: "status", hidden: true });
    root.append(note, shell);
    const ask = async (what, given, options) => {
      const onPart = options.onPart || (() => {});
      const answer = await kernel.ask(what, given, { ...options, onPart: (part) => { note.hidden = true; onPart(part); }, onSlow: () => { note.textContent = SILENT; note.hidden = false; } });
      note.hidden = true;
      return answer;
    };
    mountDialogue(shell, ask, model.get("setting"));
    return () => { kernel.close(); close(); };
  },
};
