// Marks wait in the browser until the kernel says that they are on the disk: a kernel that dies in between loses none.
function openMarks(kernel, study) {
  const place = `rsvlm-marks-${study}`;
  const waiting = () => { try { return JSON.parse(localStorage.getItem(place) || "{}"); } catch (error) { return {}; } };
  const keep = (marks) => { try { localStorage.setItem(place, JSON.stringify(marks)); } catch (error) { /* no room or not allowed: the kernel alone saves */ } };
  async function send(mark, onSlow) {
    await kernel.ask("mark", { mark }, { onSlow });
    const left = waiting();
    delete left[mark.key];
    keep(left);
  }
  return {
    async save(mark, say) {
      const dated = { ...mark, key: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`, when: new Date().toISOString().slice(0, 19) + "+00:00" };
      keep({ ...waiting(), [dated.key]: dated });
      await send(dated, () => say("not saved yet: the kernel does not answer. Kept in this browser; run the cell again after a restart."));
    },
    // Marks of an earlier kernel's time, in their order; resolves to how many.
    async resend() {
      const left = Object.values(waiting());
      for (const mark of left) await send(mark);
      return left.length;
    },
  };
}

export default {
  async render({ model, el }) {
    const { root, close } = openRoot(el, model.get("sheet"));
    const kernel = openKernel(model);
    const shell = make("div", { class: "shell scripted" });
    const note = make("p", { class: "silent", role: "status", hidden: true });
    root.append(note, shell);
    const onSlow = () => { note.textContent = SILENT; note.hidden = false; };
    const ask = async (what, given) => {
      const answer = await kernel.ask(what, given, { onSlow });
      note.hidden = true;
      return answer;
    };
    const setting = model.get("setting");
    const marks = openMarks(kernel, setting.study);
    try {
      const late = await marks.resend();
      if (late) { note.textContent = `${late} ${late === 1 ? "mark" : "marks"} of an earlier kernel saved now.`; note.hidden = false; setTimeout(() => { note.hidden = true; }, 8000); }
    } catch (error) { note.textContent = error.message; note.hidden = false; }
    const view = mountGallery(shell, {
      page: (query, first, count) => ask("page", { query, first, count }),
      prepare: (query, first, count) => kernel.ask("prepare", { query, first, count }).catch(() => {}),
      detail: (image_id) => ask("detail", { image_id }),
      pictures: (image_ids) => ask("pictures", { image_ids }),
      mark: marks.save,
      errors: (run) => ask("errors", { run }),
    }, setting);
    return () => { view.close(); kernel.close(); close(); };
  },
};
