// Shows the chosen video or picture. `props.value` has its id, kind and name.
const viewer = element.querySelector(".viewer");

function unable() {
  const text = document.createElement("p");
  text.textContent = "This browser cannot show the file. The model reads it all the same.";
  viewer.replaceChildren(text);
}

function draw() {
  const { id = "", kind, name } = props.value || {};
  if (viewer.dataset.id === id) return;
  viewer.dataset.id = id;
  viewer.hidden = !id;
  if (!id) return viewer.replaceChildren();
  const shown = document.createElement(kind === "image" ? "img" : "video");
  Object.assign(shown, { controls: true, playsInline: true, preload: "metadata", alt: name, onerror: unable });
  shown.setAttribute("aria-label", name);
  shown.src = `page/videos/${encodeURIComponent(id)}`;
  viewer.replaceChildren(shown);
}

watch("value", draw);
draw();
