"use strict";
// Every text goes into the page as a text node or an attribute's value, never as markup: a caption can't become code.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "parts") for (const [part, amount] of Object.entries(value)) element.style.setProperty(part, amount);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const showNumber = (value, digits = 2) => (typeof value === "number" ? value.toFixed(digits) : "–");
const showGap = (value) => (typeof value === "number" ? `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}` : "–");
const isTyping = (element) => Boolean(element) && /^(INPUT|SELECT|TEXTAREA)$/.test(element.tagName);
