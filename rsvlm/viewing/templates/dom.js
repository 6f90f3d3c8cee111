"use strict";
// Marks of reading direction (Unicode UAX 9) in a text of the data end with it: isolate() of rsvlm.safe_text.
function isolated(text) {
  if (!/[\u202a-\u202e\u2066-\u2069]/.test(text)) return text;
  let depth = 0;
  const kept = [...text].filter((character) => {
    if ("\u2066\u2067\u2068".includes(character)) depth += 1;
    else if (character === "\u2069") return depth > 0 && depth-- > 0;
    return true;
  });
  return `\u2068${kept.join("")}${"\u2069".repeat(depth + 1)}`;
}
// Every text goes into the page as a text node or an attribute's value, never as markup: a caption can't become code.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "parts") for (const [part, amount] of Object.entries(value)) element.style.setProperty(part, amount);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (typeof child === "string" ? isolated(child) : child)));
  return element;
}
// A text in another language: a short mark, and the language for who has it read aloud. named: code -> [name, how it came].
const drawForeign = (code, text, named) => [make("abbr", { class: "lang", title: ((named || {})[code] || [code]).join(", ") }, code), " ",
  make("span", { lang: code, dir: "auto" }, text)];
const showNumber = (value, digits = 2) => (typeof value === "number" ? value.toFixed(digits) : "–");
const showGap = (value) => (typeof value === "number" ? `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}` : "–");
const isTyping = (element) => Boolean(element) && /^(INPUT|SELECT|TEXTAREA)$/.test(element.tagName);
