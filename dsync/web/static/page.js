// What comes from the server reaches the page as text (textContent, append), never as markup.

const MOST = 500 // rows that are shown
const at = id => document.getElementById(id)

// -- text -----------------------------------------------------------------------------------------

// What cannot be seen, or turns the line around, is shown as its number.
const UNSEEN = /(?! )[\p{C}\p{Z}]/gu
const plain = text =>
  String(text).replace(UNSEEN, c => `\\u{${c.codePointAt(0).toString(16)}}`)

function lasting(seconds) {
  if (seconds === null || seconds === undefined) return "–"
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(2))} ms`
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 120) return `${Math.round(seconds)} s`
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86400)} days`
}

function rate(number) {
  if (number === null) return "–"
  return number < 10 ? String(Number(number.toFixed(1))) : Math.round(number).toLocaleString("en")
}

const where = party => `${plain(party.host)}:${party.pid}`
const who = party => plain(party.task === null ? party.label : `${party.label}: ${party.task}`)

function state(row) {
  if (!HELD.has(row.kind) || row.error) return row.state
  if (row.kind === "semaphore") return `${row.held} of ${row.limit} held`
  return row.held ? "held" : "free"
}

const HELD = new Set(["lock", "semaphore", "condition", "leader"])
const first = row =>
  row.holders.length ? who(row.holders[0]) + (row.held > 1 ? ` and ${row.held - 1} more` : "") : ""

function mood(row) {
  if (row.error) return "error"
  if (row.waiting) return "queue"
  return row.busy ? "busy" : "idle"
}

// -- elements -------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text // else a selection would be lost
}

// As many children as there are items: those that are there are kept, and told of their item.
function fill(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove()
  items.forEach((item, i) => update(parent.children[i] ?? parent.appendChild(create()), item))
}

// -- columns --------------------------------------------------------------------------------------

// `by`: what it is sorted by; numbers begin with the greatest.
const number = { style: "number" }
const rare = { style: "number rare" } // not where there is little room
const COLUMNS = [
  { title: "Name", text: row => plain(row.name), by: row => row.name },
  { title: "Kind", text: row => row.kind, by: row => row.kind, style: "kind seldom" },
  { title: "State", text: state, by: state, style: "state" },
  { title: "Waiting", text: row => String(row.waiting), by: row => row.waiting, ...number },
  { title: "Per second", text: row => rate(row.rate), by: row => row.rate ?? -1, ...rare },
  { title: "Wait p50", text: row => lasting(row.wait_p50), by: row => row.wait_p50 ?? -1, ...rare },
  { title: "Wait p99", text: row => lasting(row.wait_p99), by: row => row.wait_p99 ?? -1, ...rare },
  { title: "Holder", text: first, by: first, style: "seldom" },
]
const NAME = 0

const sorting = { column: NAME, down: false }

function heads() {
  COLUMNS.forEach((column, i) => {
    const button = make("button", { type: "button" }, column.title)
    button.addEventListener("click", () => {
      const numbers = column.style?.includes("number") ?? false
      sorting.down = sorting.column === i ? !sorting.down : numbers
      sorting.column = i
      render()
    })
    at("head").append(make("th", { scope: "col", class: column.style ?? "" }, button))
  })
}

function compare(one, other) {
  const { by } = COLUMNS[sorting.column]
  const [a, b] = [by(one), by(other)]
  const order = a < b ? -1 : a > b ? 1 : 0
  if (order) return sorting.down ? -order : order
  return one.name < other.name ? -1 : one.name > other.name ? 1 : one.key < other.key ? -1 : 1
}

// -- rows -----------------------------------------------------------------------------------------

let rows = [] // as the server has told them last
let from = "" // where that was, and who has told of it
let csrf = null // with which a hold can be taken away; null where that is not allowed
const shown = new Map() // by key: the elements of a row

function chosen() {
  const words = at("filter").value.toLowerCase().split(/\s+/)
  return rows
    .filter(row => {
      if (at("busy").checked && !row.busy && !row.error) return false
      const parties = [...row.holders, ...row.waiters].map(party => `${who(party)} ${where(party)}`)
      const text = [row.kind, plain(row.name), state(row), ...parties].join("\n").toLowerCase()
      return words.every(word => text.includes(word))
    })
    .sort(compare)
}

function render() {
  const focused = document.activeElement
  const found = chosen()
  const visible = found.slice(0, MOST)
  const keys = new Set(visible.map(row => row.key))
  for (const [key, { line, details }] of shown) {
    if (keys.has(key)) continue
    line.remove()
    details.remove()
    shown.delete(key)
  }
  let previous = null
  for (const row of visible) {
    if (!shown.has(row.key)) shown.set(row.key, made())
    const elements = shown.get(row.key)
    update(elements, row)
    const next = previous === null ? at("rows").firstElementChild : previous.nextElementSibling
    if (next !== elements.line) at("rows").insertBefore(elements.line, next)
    if (elements.line.nextElementSibling !== elements.details) elements.line.after(elements.details)
    previous = elements.details
  }
  if (focused?.isConnected && focused !== document.activeElement) // it was in a row that moved
    focused.focus({ preventScroll: true })
  ;[...at("head").children].forEach((th, i) => {
    if (i !== sorting.column) th.removeAttribute("aria-sort")
    else th.setAttribute("aria-sort", sorting.down ? "descending" : "ascending")
  })
  const all = rows.length.toLocaleString("en")
  const part = visible.length === rows.length ? all : `${visible.length} of ${all}`
  write(at("count"), rows.length ? `${part} shown${from}` : `Nothing here yet${from}`)
}

function made() {
  const name = make("bdi")
  const opener = make("button", { type: "button", class: "name", "aria-expanded": "false" }, name)
  const cells = COLUMNS.map((column, i) =>
    i === NAME ? make("th", { scope: "row" }, opener) : make("td", { class: column.style ?? "" }))
  const wide = make("td", { colspan: COLUMNS.length })
  const details = make("tr", { class: "details", hidden: "" }, wide)
  opener.addEventListener("click", () => {
    details.hidden = !details.hidden
    opener.setAttribute("aria-expanded", String(!details.hidden))
    render()
  })
  return { line: make("tr", {}, ...cells), cells, name, details }
}

function update({ line, cells, name, details }, row) {
  COLUMNS.forEach((column, i) => write(i === NAME ? name : cells[i], column.text(row)))
  line.dataset.is = mood(row)
  if (!details.hidden) explain(details.firstElementChild, row)
}

// -- what a row opens -----------------------------------------------------------------------------

function explain(cell, row) {
  if (!cell.children.length) {
    cell.append(make("dl"))
    for (const title of ["Holders", "Waiters, the next first"])
      cell.append(make("h3", {}, title), make("ol"))
  }
  const [facts, heldBy, holders, waitedBy, waiters] = cell.children
  const told = [
    ["Kind", row.kind],
    ["State", plain(row.state)],
    [`${row.unit} per second`, rate(row.rate)],
    ["Wait, p50 and p99", `${lasting(row.wait_p50)}, ${lasting(row.wait_p99)}`],
  ].flat()
  fill(facts, told, () => make(facts.children.length % 2 ? "dd" : "dt"), write)
  heldBy.hidden = !row.holders.length
  waitedBy.hidden = !row.waiters.length
  fill(holders, row.holders, party, (line, holder) => {
    const held = `held for ${lasting(holder.held)}`
    const left = `lease left ${lasting(holder.lease_left)}`
    tell(line, holder, held, left, holder.fence === null ? "" : `fence ${holder.fence}`)
    offer(line, row, holder)
  })
  fill(waiters, row.waiters, party, (line, waiter) =>
    tell(line, waiter, `waits for ${lasting(waiter.waited)}`))
}

const party = () => make("li", {}, make("bdi"))

function tell(line, somebody, ...more) {
  write(line.firstElementChild, who(somebody))
  const words = [where(somebody), ...more].filter(Boolean)
  const spans = line.querySelectorAll("span")
  // Spaces between them, or they would be one word to who hears or copies them.
  words.forEach((word, i) => {
    if (spans[i]) write(spans[i], word)
    else line.append(" ", make("span", {}, word))
  })
  for (const span of [...spans].slice(words.length)) span.remove()
}

// -- taking away ----------------------------------------------------------------------------------

let wanted = null // what the dialog asks about

function offer(line, row, holder) {
  let button = line.querySelector("button")
  if (csrf === null || !HELD.has(row.kind)) return button?.remove()
  if (!button) {
    button = make("button", { type: "button", class: "danger" }, "Release…")
    line.append(" ", button)
  }
  button.onclick = () => {
    trouble("")
    wanted = { kind: row.kind, name: row.name, token: holder.token }
    write(at("confirm-title"), `Take ${row.kind} “${plain(row.name)}” from its holder?`)
    write(at("confirm-text"),
      `${who(holder)} on ${where(holder)} has held it for ${lasting(holder.held)}.`)
    at("confirm").showModal()
  }
}

async function release() {
  at("confirm").close()
  try {
    const answer = await fetch("api/release", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Dsync-Csrf": csrf },
      body: JSON.stringify(wanted),
    })
    const { error = "", held } = await answer.json()
    trouble(error || (held ? "" : "It had been given back before."))
  } catch (error) {
    trouble(`That could not be asked for: ${error.message}`)
  }
}

// -- the stream -----------------------------------------------------------------------------------

let source = null
let again = null // the timer after which the stream is opened again
let every = 1 // seconds between what is heard
let retry = 2000 // ms after which the stream is asked for again
let heard = 0 // when something was, ms
let paused = false

function status(is, text) {
  at("status").dataset.is = is
  write(at("status"), text)
  document.body.toggleAttribute("data-stale", is === "lost")
}

function trouble(text) {
  at("trouble").hidden = !text
  write(at("trouble"), plain(text))
}

function open() {
  close()
  heard = Date.now()
  source = new EventSource("events")
  source.addEventListener("about", event => {
    const about = JSON.parse(event.data)
    ;({ csrf, every, retry } = about)
    write(at("namespace"), plain(about.namespace))
    document.title = `${plain(about.namespace)} – dsync`
  })
  source.addEventListener("message", event => see(JSON.parse(event.data)))
  source.addEventListener("error", () => {
    status("lost", "connection lost, retrying")
    if (source.readyState !== EventSource.CLOSED) return // it tries again by itself
    again = setTimeout(open, retry)
    ask()
  })
}

function close() {
  clearTimeout(again)
  source?.close()
}

// Why there is no stream: that cannot be seen from the stream.
async function ask() {
  try {
    const answer = await fetch("api/overview")
    if (!answer.ok) trouble((await answer.json()).error)
  } catch {
    // The status says it.
  }
}

function see(snapshot) {
  heard = Date.now()
  if (snapshot.error) {
    status("lost", "server out of reach, retrying")
    trouble(snapshot.error)
    return
  }
  if (at("status").dataset.is !== "live") trouble("")
  status("live", `live, every ${every} s`)
  rows = snapshot.rows.map(row => ({ ...row, key: `${row.kind} ${row.name}` }))
  from = `, from ${plain(snapshot.server)}`
  from += `; ${snapshot.answered} of ${snapshot.processes} processes tell what their tasks do`
  if (snapshot.left_out) from += `; ${snapshot.left_out} were looked at earlier`
  if (snapshot.unsent) from += `; ${snapshot.unsent} more, idle ones first to be left out`
  if (snapshot.unread) from += "; there may be more"
  render()
}

function listen() {
  if (paused || document.hidden) close()
  else open()
  if (paused) status("paused", "paused")
}

heads()
at("filter").addEventListener("input", render)
at("busy").addEventListener("change", render)
at("controls").addEventListener("submit", event => event.preventDefault())
at("pause").addEventListener("click", () => {
  paused = !paused
  at("pause").setAttribute("aria-pressed", String(paused))
  listen()
})
at("confirm-no").addEventListener("click", () => at("confirm").close())
at("confirm-yes").addEventListener("click", release)
document.addEventListener("visibilitychange", listen)
setInterval(() => {
  const silent = (Date.now() - heard) / 1000
  const live = at("status").dataset.is === "live"
  if (live && !document.hidden && silent > 3 * every + 5)
    status("lost", `nothing heard for ${lasting(silent)}`)
}, 1000)
listen()
