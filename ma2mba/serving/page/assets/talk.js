// Shows the conversation. `props.value` is a list of bubbles with role, text and note. Text is shown as it is: no HTML, no Markdown.
const log = element.querySelector(".log"), all = element.querySelector(".all"), empty = element.querySelector(".empty");
const names = { user: "You", assistant: "Model", writing: "Model", problem: "Problem" };

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

function bubble() {
  const shown = document.createElement("div");
  shown.innerHTML = '<span class="unseen who"></span><div class="text"></div><p class="note"></p><button type="button" class="plain copy">Copy</button>';
  const button = shown.querySelector(".copy");
  button.addEventListener("click", () => copy(button, shown.querySelector(".text").textContent));
  return shown;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function draw() {
  const bubbles = props.value || [];
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  const shown = log.getElementsByClassName("bubble");
  while (shown.length > bubbles.length) shown[shown.length - 1].remove();
  empty.hidden = bubbles.length > 0;
  all.hidden = !bubbles.length;
  bubbles.forEach(({ role, text, note = "" }, index) => {
    const node = shown[index] || log.appendChild(bubble());
    node.className = `bubble ${role}`;
    node.setAttribute("aria-busy", role === "writing");
    set(node.querySelector(".who"), `${names[role]}: `);
    set(node.querySelector(".text"), text);
    set(node.querySelector(".note"), note);
    node.querySelector(".copy").hidden = role === "writing" || role === "user" || !text;
  });
  if (atEnd) log.scrollTop = log.scrollHeight;
}

all.addEventListener("click", () => {
  const lines = (props.value || []).map(({ role, text, note }) => `${names[role]}: ${text}${note ? ` (${note.trim()})` : ""}`);
  copy(all, lines.join("\n\n"));
});
watch("value", draw);
draw();
