// The start of the page: it listens to the user and connects to the server.
import { send } from "./chat.js";
import { generate, onText, undo } from "./completion.js";
import { $, atEnd, fitHeight, icon, isSendKey, plural, scrollToEnd } from "./dom.js";
import { copy } from "./feedback.js";
import { closePanel, deleteAll, openPanel, showList } from "./panel.js";
import { route, show, showControls, showFailure, stopAndSave } from "./screen.js";
import { request, toFailure } from "./server.js";
import { controlNode, CONTROLS, SETTINGS, showSettings, showTheme, THEME } from "./settings.js";
import { canChat, state, view } from "./state.js";
import { load, newDocument, PREFIX, savePending, saveSoon, write } from "./storage.js";

function onStorage({ key }) {
  if (key === THEME) showTheme();
  if (key === SETTINGS) showSettings();
  if (key && !key.startsWith(PREFIX)) return;
  showList();
  const doc = state.document;
  const stored = load(doc.id);
  if (doc.revision && !stored) location.hash = "";
  else if (
    stored &&
    stored.revision !== doc.revision &&
    !state.generation &&
    !state.saveTimer &&
    !$("log").querySelector("form")
  ) {
    state.document = stored;
    show();
  }
}

function onKey(event) {
  if (
    event.key !== "Escape" ||
    event.isComposing ||
    event.defaultPrevented ||
    document.querySelector("dialog[open]")
  )
    return;
  if ($("page").inert) closePanel();
  else state.generation?.controller.abort();
}

function addListeners() {
  const on = (id, type, handler) => $(id).addEventListener(type, handler);
  const submit = (action) => (event) => {
    event.preventDefault();
    action();
  };
  const stop = () => {
    state.generation?.controller.abort();
    $(canChat() ? "message" : "text").focus();
  };
  on(
    "skip",
    "click",
    submit(() => $(canChat() ? "message" : "text").focus()),
  );
  on("ask", "submit", submit(send));
  on("write", "submit", submit(generate));
  on("message", "keydown", (event) => {
    if (isSendKey(event)) {
      event.preventDefault();
      send();
    }
  });
  on("message", "input", (event) => fitHeight(event.target));
  on("text", "input", onText);
  on("text", "keydown", (event) => {
    if (isSendKey(event) && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      generate();
    }
  });
  on("stop", "click", stop);
  on("stop-text", "click", stop);
  on("undo", "click", undo);
  on("copy-text", "click", (event) => copy(state.document.text, event.currentTarget));
  on("latest", "click", scrollToEnd);
  on("scroller", "scroll", () => {
    $("latest").hidden = atEnd();
  });
  on("new", "click", () => {
    // A text that is not saved has no address yet: the link would lead to where the page is.
    savePending();
    closePanel();
    $(canChat() ? "message" : "text").focus();
  });
  on("menu", "click", openPanel);
  on("close-panel", "click", closePanel);
  on("backdrop", "click", closePanel);
  on("delete-all", "click", deleteAll);
  on("open-settings", "click", () => $("settings").showModal());
  on("close-settings", "click", () => $("settings").close());
  on("settings", "click", (event) => {
    // A click on the backdrop has the dialog itself as its target.
    if (event.target === $("settings")) $("settings").close();
  });
  on("system", "input", (event) => {
    state.document.system = event.target.value;
    if (state.document.revision) saveSoon();
  });
  on("system", "change", show);
  on("reset-all", "click", () => {
    write(SETTINGS, "{}");
    showSettings();
  });
  on("themes", "change", (event) => {
    write(THEME, event.target.value);
    showTheme();
  });
  matchMedia("(max-width: 50rem)").addEventListener("change", closePanel);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", route);
  addEventListener("storage", onStorage);
  addEventListener("pagehide", stopAndSave);
}

/** Shows the page for the server's model. Without a server, stored documents can be read. */
async function connect() {
  let failure = null;
  try {
    state.model = (await (await request("v1/models")).json()).data[0];
  } catch (error) {
    failure = toFailure(error);
  }
  const noun = canChat() ? "conversation" : "text";
  const { id, context } = state.model ?? {};
  if (id) CONTROLS.find((control) => control.name === "max_tokens").max = context;
  $("name").textContent = id ?? "miniGPT";
  $("facts").textContent = id
    ? `${canChat() ? "Chat" : "Completion"}, context of ${plural(context, "token")}`
    : "Not connected";
  $("new").lastElementChild.textContent = `New ${noun}`;
  $("scroller").setAttribute("aria-label", noun === "text" ? "Text" : "Conversation");
  $("keys").textContent = canChat()
    ? "Enter sends, Shift+Enter starts a new line, Esc stops."
    : "Ctrl+Enter generates, Esc stops. Generated text is marked.";
  showSettings();
  stopAndSave();
  state.document = null;
  route();
  state.failure = failure;
  showFailure();
}

Object.assign(view, { show, showList, showControls, connect });
state.document = newDocument();
document.querySelectorAll("[data-icon]").forEach((node) => node.prepend(icon(node.dataset.icon)));
$("controls").append(...CONTROLS.map(controlNode));
showTheme();
addListeners();
connect();
