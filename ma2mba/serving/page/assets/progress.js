// Shows how far the video is read. `props.value` has its state, share and text.
const reading = element.querySelector(".reading"), bar = reading.querySelector("progress");
const told = { queued: "Waiting to be read", reading: "The video is being read. You can ask now.", ready: "The video is read." };

function draw() {
  const { state = "none", share = 0, text = "" } = props.value || {};
  reading.hidden = state === "none";
  bar.hidden = state === "failed";
  if (state === "queued") bar.removeAttribute("value");
  else bar.value = state === "ready" ? 1 : share;
  reading.querySelector(".text").textContent = text;
  if (reading.dataset.state === state) return;
  reading.dataset.state = state;
  reading.querySelector(".text").setAttribute("role", state === "failed" ? "alert" : "none");
  reading.querySelector(".unseen").textContent = told[state] || "";
}

watch("value", draw);
draw();
