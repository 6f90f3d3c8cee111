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

export default openWidget(async ({ model, shell, kernel, ask, say, hush }) => {
  const setting = model.get("setting");
  const marks = openMarks(kernel, setting.study);
  try {
    const late = await marks.resend();
    if (late) { say(`${late} ${late === 1 ? "mark" : "marks"} of an earlier kernel saved now.`); setTimeout(hush, 8000); }
  } catch (error) { say(error.message); }
  const view = mountGallery(shell, {
    page: (query, first, count) => ask("page", { query, first, count }),
    prepare: (query, first, count) => kernel.ask("prepare", { query, first, count }).catch(() => {}),
    detail: (image_id) => ask("detail", { image_id }),
    pictures: (image_ids) => ask("pictures", { image_ids }),
    mark: marks.save,
    errors: (run) => ask("errors", { run }),
  }, setting);
  return () => view.close();
});
