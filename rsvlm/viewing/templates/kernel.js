// What a notebook's widget needs beside its view: answers from the kernel, a root of its own, the notebook's theme.
const PATIENCE = 10000; // milliseconds after which the page says that the kernel does not answer

function openKernel(model) {
  const waiting = new Map();
  const view = Math.random().toString(36).slice(2);
  let count = 0;
  function receive(message) {
    const asked = waiting.get(message.ask);
    if (!asked) return;
    if (message.part !== undefined) {
      clearTimeout(asked.timer); // it answers, however long the rest takes
      return asked.onPart(message.part);
    }
    waiting.delete(message.ask);
    clearTimeout(asked.timer);
    if (message.error !== undefined) asked.reject(new Error(message.error));
    else asked.resolve(message.answer);
  }
  model.on("msg:custom", receive);
  return {
    // A promise of the kernel's answer. It stays open for as long as it takes; onSlow is called when that gets long.
    ask(what, given = {}, { buffers = [], onPart = () => {}, onSlow = () => {} } = {}) {
      return new Promise((resolve, reject) => {
        const ask = `${view}-${count++}`;
        waiting.set(ask, { resolve, reject, onPart, timer: setTimeout(onSlow, PATIENCE) });
        try {
          model.send({ ask, what, given }, undefined, buffers);
        } catch (error) {
          clearTimeout(waiting.get(ask).timer);
          waiting.delete(ask);
          onSlow();
          reject(new Error(`the kernel cannot be reached (${error.message})`));
        }
      });
    },
    close: () => model.off("msg:custom", receive),
  };
}
const SILENT = "The kernel does not answer. If it has stopped, start it again and run this cell once more.";

// A shadow root: the notebook's styles stay outside, ours inside. Its shortcuts stay outside as well: an "x" typed into
// a search box must not cut a cell.
function openRoot(el, style) {
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  const root = el.shadowRoot || el.attachShadow({ mode: "open" });
  root.replaceChildren(make("style", {}, style));
  for (const kind of ["keydown", "keyup", "keypress"]) el.addEventListener(kind, (event) => event.stopPropagation());
  const dark = () => {
    const { body, documentElement: html } = document;
    if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false"; // JupyterLab, Notebook 7
    if (/\bvscode-(dark|high-contrast(?!-light))\b/.test(body.className)) return true;
    if (/\bvscode-/.test(body.className)) return false;
    if (html.getAttribute("theme")) return html.getAttribute("theme") === "dark"; // Colab
    return matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const follow = () => el.style.setProperty("color-scheme", dark() ? "dark" : "light");
  follow();
  const watch = new MutationObserver(follow);
  for (const element of [document.body, document.documentElement]) watch.observe(element, { attributes: true });
  return { root, close: () => watch.disconnect() };
}

// A widget: its own root and kernel around what mount makes in the shell, and a note above that for as long as the kernel is silent.
// mount gets { model, el, shell, kernel, ask, say, hush }: ask is the kernel's, say and hush write and hide the note. What
// mount returns is called when the view goes.
function openWidget(mount) {
  return {
    async render({ model, el }) {
      const { root, close } = openRoot(el, model.get("sheet"));
      const kernel = openKernel(model);
      const shell = make("div", { class: "shell scripted" });
      const note = make("p", { class: "silent", role: "status", hidden: true });
      root.append(note, shell);
      const say = (text) => { note.textContent = text; note.hidden = false; };
      const hush = () => { note.hidden = true; };
      const ask = async (what, given, { onPart = () => {}, ...options } = {}) => {
        const answer = await kernel.ask(what, given, { ...options, onPart: (part) => { hush(); onPart(part); }, onSlow: () => say(SILENT) });
        hush();
        return answer;
      };
      const leave = await mount({ model, el, shell, kernel, ask, say, hush });
      return () => { if (leave) leave(); kernel.close(); close(); };
    },
  };
}

// An image file from outside, chosen or dropped on the root: take gets (name, content), fail what is wrong with it.
function takeFiles(root, take, fail) {
  const input = make("input", { type: "file", accept: "image/*,.tif,.tiff", class: "file", tabindex: -1, "aria-hidden": "true", onchange: () => { if (input.files[0]) read(input.files[0]); input.value = ""; } });
  async function read(file) {
    try {
      take(file.name, await file.arrayBuffer());
    } catch (error) {
      fail(`${file.name}: the browser cannot read it (a folder?)`);
    }
  }
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) root.addEventListener(kind, (event) => { event.preventDefault(); event.stopPropagation(); root.classList.toggle("dropping", kind === "dragenter" || kind === "dragover"); });
  root.addEventListener("drop", (event) => { const [first] = event.dataTransfer.files; if (first) read(first); else fail("That was no file: drop an image file from a folder."); });
  return [make("button", { type: "button", class: "plain", onclick: () => input.click() }, "An image file …"), input];
}
