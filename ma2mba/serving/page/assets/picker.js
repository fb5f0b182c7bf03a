// Uploads a video, and lists the visitor's videos. `props.value` is the id of the video that is shown.
const part = (name) => element.querySelector(name);
const drop = part(".drop"), file = part("input"), sending = part(".sending"), list = part("select");
let request = null;

const size = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

function complain(text) {
  part(".problem").hidden = !text;
  part(".problem").textContent = text;
}

function choose(id) {
  props.value = id;
  trigger("select");
}

function over(text) {
  request = null;
  sending.hidden = true;
  file.value = "";
  complain(text);
}

function upload(chosen) {
  complain("");
  if (!chosen) return;
  if (request) return complain("Another upload is running. Wait for its end, or cancel it.");
  if (chosen.size > props.most_bytes) {
    return over(`${chosen.name} has ${size(chosen.size)}. The largest upload is ${size(props.most_bytes)}: send a shorter or smaller video.`);
  }
  request = new XMLHttpRequest();
  request.open("POST", `page/videos?name=${encodeURIComponent(chosen.name)}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.onprogress = (event) => {
    part("progress").value = event.loaded / chosen.size;
    part(".sent").textContent =
      event.loaded < chosen.size ? `Uploading: ${size(event.loaded)} of ${size(chosen.size)}` : "Checking the file";
  };
  request.onload = () => {
    let reply = {};
    try {
      reply = JSON.parse(request.responseText);
    } catch {}
    over(reply.id ? "" : reply.error?.message || `${chosen.name}: the server answered ${request.status}. Try again.`);
    if (reply.id) choose(reply.id);
  };
  request.onerror = () => over(`${chosen.name}: the upload was interrupted. Check the connection, and try again.`);
  request.onabort = () => over("");
  part("progress").value = 0;
  part(".sent").textContent = "Uploading";
  sending.hidden = false;
  request.send(chosen);
}

function draw() {
  const videos = props.videos || [];
  part(".mine").hidden = !videos.length;
  list.replaceChildren(...videos.map((video) => new Option(video.name, video.id, false, video.id === props.value)));
}

part(".limits").textContent = `Up to ${size(props.most_bytes)} and ${props.hours} hours. Nobody else sees it.`;
file.addEventListener("change", () => upload(file.files[0]));
part(".cancel").addEventListener("click", () => request?.abort());
list.addEventListener("change", () => choose(list.value));
part(".remove").addEventListener("click", () => trigger("delete"));
for (const [name, on] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", on);
    if (name === "drop") upload(event.dataTransfer.files[0]);
  });
}
watch(["value", "videos"], draw);
draw();
