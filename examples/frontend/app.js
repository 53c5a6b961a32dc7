const find = (selector, within = document) => within.querySelector(selector);

async function ask(path, options) {
  const response = await fetch(path, options);
  if (response.ok) return response.status === 204 ? null : response.json();
  const { detail } = await response.json().catch(() => ({}));
  throw new Error(typeof detail === "string" ? detail : `The server answered ${response.status}.`);
}

function card(item) {
  const node = find("#item").content.cloneNode(true);
  const score = item.score === undefined ? [] : [`score ${item.score.toFixed(2)}`];
  find("h2", node).textContent = item.name;
  find("p", node).textContent = item.text;
  find(".tags", node).textContent = [...item.tags, ...score].join(" · ");
  find("button", node).addEventListener("click", () => attempt(async () => {
    await ask(`/items/${item.id}`, { method: "DELETE" });
    await show();
  }));
  return node;
}

async function show() {
  const query = find("#search").q.value.trim();
  const items = await ask(query ? `/search?q=${encodeURIComponent(query)}` : "/items");
  find("#items").replaceChildren(...items.map(card));
  say(items.length ? "" : query ? "Nothing found." : "No items yet.");
}

async function add(form) {
  const { name, text, tags } = Object.fromEntries(new FormData(form));
  await ask("/items", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name, text, tags: tags.split(",").map((tag) => tag.trim()).filter(Boolean) }),
  });
  form.reset();
  find("#search").reset();
  await show();
}

const say = (message) => { find("#message").textContent = message; };
const attempt = (action) => action().catch((error) => say(error.message));

find("#add").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => add(event.target));
});
find("#search").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(show);
});
attempt(show);
