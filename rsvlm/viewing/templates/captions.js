// The static page: its own data answers, by the rules of rsvlm.viewing.records.select_rows.
function openPage(page) {
  for (const item of page.items) {
    const said = {};
    for (const [run, pieces] of Object.entries(item.said)) said[run] = plainWords(pieces).toLowerCase();
    const foreign = Object.values(item.languages).flat();
    const references = [...item.references, ...foreign].map(([text]) => text).join("\n").toLowerCase();
    item.texts = { said, references, all: [references, item.id.toLowerCase(), item.label.toLowerCase(), ...Object.values(said)].join("\n") };
  }
  function select(query) {
    const words = query.words.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (item) => {
      const value = measured(item, query);
      const text = query.place === "said" ? item.texts.said[query.run] || "" : item.texts[query.place];
      return (!query.source || item.source === query.source) && (!query.split || item.split === query.split) &&
        (!query.label || item.label === query.label) && (!query.seen || item.seen === (query.seen === "yes")) &&
        (!query.language || query.language === "en" || query.language in item.languages) &&
        (query.low === null || (value !== null && value >= query.low)) && (query.high === null || (value !== null && value <= query.high)) &&
        words.every((word) => text.includes(word));
    };
    const rows = page.items.filter(fits).map((item) => ({ item, value: measured(item, query) }));
    if (query.order === "random") return rows; // items stand in the order of the draw
    const known = rows.map(({ value }) => value).filter((value) => value !== null).sort((a, b) => a - b);
    const middle = known.length ? known[Math.floor((known.length - 1) / 2)] : 0;
    const key = { best: (value) => -value, worst: (value) => value, median: (value) => Math.round(1e4 * Math.abs(value - middle)) }[query.order];
    const of = ({ value }) => (value === null ? Infinity : key(value));
    return rows.map((row, at) => ({ ...row, key: of(row), at })).sort((a, b) => (a.key === b.key ? a.at - b.at : a.key < b.key ? -1 : 1));
  }
  const byId = new Map(page.items.map((item) => [item.id, item]));
  return {
    async page(query, first, count) {
      const found = select(query);
      return { total: found.length, items: found.slice(first, first + count).map(({ item }) => item) };
    },
    async detail(id) {
      const { near } = byId.get(id);
      return { picture: null, near: near.map(([name, cosine, copied]) => ({ ...page.training[name], name, cosine, copied })) };
    },
    async pictures() { return { pictures: {}, broken: {} }; },
  };
}
const page = JSON.parse(document.getElementById("data").textContent);
document.documentElement.classList.add("scripted");
mountGallery(document.getElementById("gallery"), openPage(page), { ...page.setting, marks: false, whole: true });
