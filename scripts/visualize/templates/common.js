"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
