// The start of the page: it listens to the user and connects to the server.
import { send } from "./chat.js";
import { generate, onText, undo } from "./completion.js";
import {
  defaultSystem,
  keepAsNew,
  keepDraft,
  keepSystem,
  load,
  PREFIX,
  savePending,
  saveSoon,
} from "./documents.js";
import { $, atEnd, fitHeight, icon, isSendKey, scrollToEnd } from "./dom.js";
import { copy } from "./feedback.js";
import { assumeKind, chooseModel, chooseSecond, loadModels, showModels } from "./models.js";
import {
  closePanel,
  deleteAll,
  onOptionsKey,
  onOptionsToggle,
  openPanel,
  showList,
} from "./panel.js";
import { hideTip, onScroll } from "./probabilities.js";
import { CONTROLS } from "./sampling.js";
import { route, show, showControls, stopAndSave } from "./screen.js";
import { toFailure } from "./server.js";
import { controlNode, resetSampling, showSettings, showTheme, THEME } from "./settings.js";
import { canChat, noun, state, view } from "./state.js";
import { write } from "./store.js";
import { changeSettings, SETTINGS } from "./stored_settings.js";
import { exportAll, importFile } from "./transfer.js";

const on = (id, type, handler) => $(id).addEventListener(type, handler);
const submit = (action) => (event) => {
  event.preventDefault();
  action();
};
const focusField = () => $(canChat() ? "message" : "text").focus();

function onStorage({ key }) {
  if (key === THEME) showTheme();
  if (key === SETTINGS) showSettings();
  if (key && !key.startsWith(PREFIX)) return;
  showList();
  const doc = state.document;
  const stored = load(doc.id);
  if (doc.revision && !stored) {
    // What is in its field stays.
    // Once, though an event comes for each conversation that was deleted.
    if (doc.kind === "chat" && location.hash) keepAsNew($("message").value);
    location.hash = "";
  } else if (
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
    document.querySelector("dialog[open], #options:popover-open")
  )
    return;
  if (hideTip()) return;
  if ($("page").inert) closePanel();
  else state.generation?.controller.abort();
}

function listenToFields() {
  const stop = () => {
    state.generation?.controller.abort();
    focusField();
  };
  on("skip", "click", submit(focusField));
  on("ask", "submit", submit(send));
  on("write", "submit", submit(generate));
  on("message", "keydown", (event) => {
    if (isSendKey(event)) {
      event.preventDefault();
      send();
    }
  });
  on("message", "input", (event) => {
    fitHeight(event.target);
    keepDraft(state.document, event.target.value);
  });
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
    onScroll();
    $("latest").hidden = atEnd();
  });
}

function listenToPanel() {
  on("new", "click", () => {
    // A text that is not saved has no address yet: the link would lead to where the page is.
    savePending();
    closePanel();
    focusField();
  });
  on("menu", "click", openPanel);
  on("close-panel", "click", closePanel);
  on("backdrop", "click", closePanel);
  on("cancel-rename", "click", () => $("rename").close());
  on("options", "keydown", onOptionsKey);
  on("options", "toggle", onOptionsToggle);
  on("delete-all", "click", deleteAll);
  on("export-all", "click", exportAll);
  on("import", "click", () => $("import-file").click());
  on("import-file", "change", importFile);
  on("themes", "change", (event) => {
    write(THEME, event.target.value);
    showTheme();
  });
}

function listenToSettings() {
  on("open-settings", "click", () => $("settings").showModal());
  on("close-settings", "click", () => $("settings").close());
  on("settings", "click", (event) => {
    // A click on the backdrop has the dialog itself as its target.
    if (event.target === $("settings")) $("settings").close();
  });
  on("system", "input", (event) => {
    state.document.system = event.target.value;
    if (state.document.revision) saveSoon();
    else keepSystem(state.document);
  });
  on("system", "change", show);
  on("new-system", "change", (event) => {
    const before = defaultSystem();
    changeSettings({ system: event.target.value });
    const doc = state.document;
    // A conversation that has not begun is a new one.
    if (doc.revision || doc.system !== before) return;
    doc.system = defaultSystem();
    keepSystem(doc);
    show();
  });
  on("probabilities", "change", (event) => changeSettings({ probabilities: event.target.checked }));
  on("reset-all", "click", resetSampling);
  on("model", "change", (event) => useModel(event.target.value));
  on("second", "change", (event) => {
    chooseSecond(event.target.value);
    showModels();
  });
}

function useModel(id) {
  const couldChat = canChat();
  stopAndSave();
  chooseModel(id);
  if (canChat() !== couldChat) history.replaceState(null, "", location.pathname);
  showModel(couldChat);
}

/** Shows what the model changes. Another kind of model needs another document. */
function showModel(couldChat) {
  showLabels();
  if (canChat() === couldChat) return show();
  stopAndSave();
  state.document = null;
  route();
}

/** Shows what depends on the model and not on the document. */
function showLabels() {
  showModels();
  $("new").lastElementChild.textContent = `New ${noun()}`;
  $("scroller").setAttribute("aria-label", canChat() ? "Conversation" : "Text");
  $("keys").textContent = canChat()
    ? "Enter sends, Shift+Enter starts a new line, Esc stops."
    : "Ctrl+Enter generates, Esc stops. Generated text is marked.";
  showSettings();
}

/** Shows the page for the server's model. Without a server, stored documents can be read. */
async function connect() {
  const couldChat = canChat();
  let failure = null;
  try {
    await loadModels();
  } catch (error) {
    failure = toFailure(error);
  }
  state.failure = failure;
  showModel(couldChat);
}

Object.assign(view, { show, showList, showControls, connect });
assumeKind();
document.querySelectorAll("[data-icon]").forEach((node) => node.prepend(icon(node.dataset.icon)));
$("controls").append(...CONTROLS.map(controlNode));
showTheme();
listenToFields();
listenToPanel();
listenToSettings();
matchMedia("(max-width: 50rem)").addEventListener("change", closePanel);
document.addEventListener("keydown", onKey);
addEventListener("hashchange", route);
addEventListener("storage", onStorage);
addEventListener("pagehide", stopAndSave);
showLabels();
route();
$("facts").textContent = "Connecting";
connect();
