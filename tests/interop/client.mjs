// A client of wsrecover on `ws`, written from SPEC.md alone: a program that speaks JSON lines.
//
// Run as `node client.mjs SETTINGS`, in a folder or below one where `ws` is installed. interop_world.py says what
// the settings, the orders on stdin and the lines on stdout are.

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

// Modules are looked up from the working folder, so that this file may stand where nothing is installed.
const WebSocket = createRequire(process.cwd() + "/")("ws");

const LARGEST_EVENT = 16 * 1024 * 1024;
const PONG_MS = 10_000;
const ACK_MS = 1_000;
const ACK_EVENTS = 100;
const [FIRST_CEILING_MS, LAST_CEILING_MS, HELD_MS] = [500, 20_000, 60_000];

// What a refused handshake means to a client, as close codes.
const [TOKEN_REFUSED, GAVE_UP] = [4001, 4599];

const REFRESH = [4001];
const NEW_CLIENT_ID = [4500];
const FAIL_SENDS = [1007, 1009, 4502];
const STOP = [1000, 4501, 4503];

const without = (frame, name) => Object.fromEntries(Object.entries(frame).filter(([key]) => key !== name));
const randomId = () => randomBytes(16).toString("base64url");

class Client {
  constructor(settings, app) {
    this.settings = settings;
    this.app = app;
    this.id = settings.client ?? randomId();
    this.streams = new Map(); // name: {epoch, last, pieces, held, partOf}; last is null after a gap without an end
    for (const [name, [epoch, seq]] of Object.entries(settings.positions ?? {})) this.open(name, epoch, seq);
    this.commands = new Map(); // id: {frame, firstSent, suspiciousCloses}
    this.reached = new Map(); // message id: its UTF-16 units that the app has
    this.token = null;
    this.tokenCame = () => {};
    this.online = false;
    this.awaitNetwork();
    this.socket = null;
    this.introduced = false;
    this.deaf = false;
    this.traps = [];
    this.replaced = false;
    this.unacked = 0;
    this.ceiling = FIRST_CEILING_MS;
    this.leastWait = 0;
    this.drain = null;
    this.heartbeat = 25;
  }

  open(name, epoch, last) {
    const stream = { epoch, last, pieces: [], held: 0, partOf: null };
    this.streams.set(name, stream);
    return stream;
  }

  // What the app orders

  order(order) {
    if (order.do === "token") {
      this.token = order.token;
      this.tokenCame();
      this.send({ op: "auth", id: randomId(), token: order.token });
    } else if (order.do === "online") {
      this.online = true;
      this.cameOnline();
    } else if (order.on) {
      this.traps.push(order);
    } else if (order.do === "offline") {
      this.drop();
    } else if (order.do === "deaf") {
      this.deaf = true;
    } else if (order.do === "send") {
      const command = { frame: { op: "send", ...without(order, "do") }, firstSent: null, suspiciousCloses: 0 };
      this.commands.set(order.id, command);
      this.sendCommand(command);
    } else {
      this.send({ op: order.do });
    }
  }

  /** From now on `back` is the next time that the network comes back. */
  awaitNetwork() {
    this.back = new Promise((resolve) => (this.cameOnline = resolve));
  }

  /** The network is gone: the TCP connection breaks without a word. */
  drop() {
    this.online = false;
    this.awaitNetwork();
    this.giveUp();
  }

  giveUp() {
    this.deaf = true;
    this.socket?.terminate();
  }

  // Connections

  /** Connect and reconnect until a close says that it is over. */
  async run() {
    for (;;) {
      while (!this.online) await this.back;
      if (this.token === null) {
        this.app({ got: "token_wanted" });
        await new Promise((resolve) => (this.tokenCame = resolve));
      }
      const begun = performance.now();
      this.awaitNetwork();
      const code = await this.connection();
      if (performance.now() - begun >= HELD_MS) {
        this.ceiling = FIRST_CEILING_MS;
        this.replaced = false;
      }
      this.app({ got: "closed", code });
      if (!this.goesOn(code)) return;
      if (this.online) await Promise.race([sleep(this.waitMs(), undefined, { ref: false }), this.back]);
    }
  }

  /** Do what the table of close codes says; whether to reconnect. */
  goesOn(code) {
    if (REFRESH.includes(code)) this.token = null;
    if (NEW_CLIENT_ID.includes(code)) {
      if (this.replaced) return false;
      this.replaced = true;
      this.id = randomId();
    }
    if (FAIL_SENDS.includes(code)) {
      for (const [id, command] of this.commands) {
        if (command.firstSent !== null && ++command.suspiciousCloses === 2) {
          this.commands.delete(id);
          this.app({ got: "failed", id });
        }
      }
    }
    const listed = [...NEW_CLIENT_ID, ...FAIL_SENDS].includes(code);
    return !(STOP.includes(code) || (code >= 4500 && code <= 4999 && !listed));
  }

  waitMs() {
    if (this.drain !== null) {
      const { retry_after: least, jitter } = this.drain;
      this.drain = null;
      return (least + Math.random() * jitter) * 1000;
    }
    const wait = this.leastWait * 1000 + Math.random() * this.ceiling;
    this.leastWait = 0;
    this.ceiling = Math.min(this.ceiling * 2, LAST_CEILING_MS);
    return wait;
  }

  /** One connection from its handshake to its close; resolves to the close code. */
  async connection() {
    const hello = this.hello();
    const subprotocols = ["wsrecover.v1"];
    const headers = {};
    if (this.settings.token === "header") headers.Authorization = `Bearer ${this.token}`;
    if (this.settings.token === "subprotocol") subprotocols.push(`bearer.${this.token}`);
    if (this.settings.token === "frame") hello.token = this.token;
    let url = `${this.settings.url}/v1/connect`;
    if (this.settings.hello === "url") {
      const parameters = Object.entries(without(hello, "token")).map(
        ([name, value]) => `${name}=${encodeURIComponent(typeof value === "string" ? value : JSON.stringify(value))}`,
      );
      url += `?${parameters.join("&")}`;
    }
    const socket = new WebSocket(url, subprotocols, { headers });
    let refusal;
    this.socket = socket;
    this.introduced = this.deaf = false;
    const acks = setInterval(() => this.unacked && this.ack(), ACK_MS);
    socket.on("open", () => {
      this.hear();
      if (this.settings.hello === "frame") socket.send(JSON.stringify({ op: "hello", ...hello }));
    });
    socket.on("message", (message) => this.onMessage(JSON.parse(message)));
    socket.on("error", () => {}); // A close follows, which decides.
    socket.on("unexpected-response", (request, response) => {
      const status = response.statusCode;
      this.leastWait = Number(response.headers["retry-after"] ?? 0);
      this.app({ got: "refused", status });
      if (status === 401) refusal = TOKEN_REFUSED;
      else if (status !== 429 && status < 500) refusal = GAVE_UP;
      response.resume();
      socket.terminate();
    });
    const code = await new Promise((resolve) => socket.on("close", resolve));
    this.socket = null;
    clearInterval(acks);
    clearTimeout(this.silence);
    return refusal ?? code;
  }

  /** Something was heard: the link lives. */
  hear() {
    clearTimeout(this.silence);
    this.silence = setTimeout(
      () => {
        this.send({ op: "ping" });
        this.silence = setTimeout(() => this.giveUp(), PONG_MS);
      },
      (this.settings.heartbeat ?? this.heartbeat) * 1000,
    );
  }

  /** What says who the client is and where it stands. */
  hello() {
    const hello = { client: this.id };
    for (const [name, stream] of this.streams) {
      if (stream.last !== null) (hello.resume ??= {})[name] = [stream.epoch, stream.last];
      if (stream.last !== null && stream.held) (hello.part ??= {})[name] = [stream.partOf.seq, stream.held];
    }
    for (const name of ["from", "threads"]) if (name in this.settings) hello[name] = this.settings[name];
    return hello;
  }

  /** Send it if there is a connection; what must not be lost is repeated on the next one. */
  send(frame) {
    if (this.introduced && this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(frame));
  }

  sendCommand(command) {
    if (!this.introduced) return;
    const age = command.firstSent === null ? {} : { age: (performance.now() - command.firstSent) / 1000 };
    command.firstSent ??= performance.now();
    this.send({ ...command.frame, ...age });
  }

  ack() {
    this.unacked = 0;
    const pos = {};
    for (const [name, { last }] of this.streams) if (last !== null) pos[name] = last;
    if (Object.keys(pos).length) this.send({ op: "ack", pos });
  }

  // What comes

  onMessage(message) {
    this.hear();
    for (const frame of Array.isArray(message) ? message : [message]) {
      if (this.deaf) return;
      this[`on_${frame.op}`]?.(frame);
      const trap = this.traps.find(({ on }) => Object.entries(on).every(([name, value]) => frame[name] === value));
      if (trap === undefined) continue;
      this.traps.splice(this.traps.indexOf(trap), 1);
      if (trap.do === "offline") this.drop();
      this.deaf = true;
    }
  }

  on_welcome(frame) {
    this.introduced = true;
    this.heartbeat = frame.heartbeat;
    this.hear();
    for (const name of this.streams.keys()) if (!(name in frame.streams)) this.streams.delete(name);
    this.app({ got: "connected", client: this.id, streams: frame.streams, runs: frame.runs });
    this.follow(frame.streams);
    this.ack();
    for (const command of this.commands.values()) this.sendCommand(command);
  }

  on_streams({ added, removed }) {
    for (const name of removed) this.streams.delete(name);
    this.follow(added);
    this.app({ got: "streams", added: Object.keys(added), removed });
  }

  follow(states) {
    for (const [name, state] of Object.entries(states)) {
      let held = this.streams.get(name);
      if (held && !state.resumed) {
        this.app({ got: "history_changed", stream: name, reason: state.reason });
        held = undefined;
      }
      if (held?.epoch !== state.epoch) held = this.open(name);
      held.epoch = state.epoch;
      held.last = state.from - 1;
    }
  }

  on_event(event, parts = 0) {
    const stream = this.streams.get(event.stream);
    const first = event.first_seq ?? event.seq;
    if (stream.last !== null) {
      if (event.seq <= stream.last) {
        this.app({ got: "dropped", stream: event.stream, seq: event.seq });
        return;
      }
      if (first > stream.last + 1) return this.hole(event);
      if (first <= stream.last) event = this.beyond(event, stream.last + 1);
    }
    this.reach(event);
    this.app({ got: "event", epoch: stream.epoch, parts, ...without(event, "op") });
    stream.last = event.seq;
    if (++this.unacked >= ACK_EVENTS) this.ack();
  }

  /** The part of a merged fragment that the app does not have yet. */
  beyond(event, firstSeq) {
    const { message_id: id, offset, text } = event.data;
    if (event.type === "message_completed") return { ...event, first_seq: firstSeq };
    const have = (this.reached.get(id) ?? 0) - offset;
    return { ...event, first_seq: firstSeq, data: { ...event.data, offset: offset + have, text: text.slice(have) } };
  }

  reach({ type, data }) {
    if (type === "message_completed") this.reached.delete(data.message_id);
    if (["message_delta", "agent_thinking"].includes(type) && "message_id" in data) {
      this.reached.set(data.message_id, data.offset + data.text.length);
    }
  }

  on_part({ stream: name, seq, offset, total, bytes }) {
    const stream = this.streams.get(name);
    if (stream.last !== null && seq <= stream.last) return;
    this.app({ got: "part", stream: name, seq, offset, total });
    if (offset === 0) Object.assign(stream, { pieces: [], held: 0, partOf: { seq, total } });
    const fits = offset === stream.held && stream.partOf?.seq === seq && stream.partOf.total === total;
    if (!fits || total > LARGEST_EVENT) {
      Object.assign(stream, { pieces: [], held: 0 });
      return this.hole({ op: "part", stream: name, seq });
    }
    const piece = Buffer.from(bytes, "base64");
    stream.pieces.push(piece);
    stream.held += piece.length;
    if (stream.held === total) {
      const event = JSON.parse(Buffer.concat(stream.pieces).toString("utf8"));
      Object.assign(stream, { pieces: [], held: 0 });
      this.on_event(event, 1);
    }
  }

  on_skip({ stream, to }) {
    this.forward(stream, to);
    this.app({ got: "skip", stream, to });
  }

  on_gap(frame) {
    const stream = this.streams.get(frame.stream);
    if (stream.last !== null && frame.from > stream.last + 1) return this.hole(frame);
    this.app({ got: "gap", ...without(frame, "op") });
    if ("to" in frame) this.forward(frame.stream, frame.to);
    else stream.last = null;
  }

  on_snapshot({ stream, seq, threads }) {
    this.forward(stream, seq);
    this.app({ got: "snapshot", stream, threads });
  }

  on_live(frame) {
    const { last } = this.streams.get(frame.stream);
    if (last !== null && frame.seq > last) return this.hole(frame);
    this.app({ got: "live", stream: frame.stream, seq: frame.seq });
  }

  on_ephemeral(frame) {
    this.app({ got: "ephemeral", ...without(frame, "op") });
  }

  on_reply(frame) {
    this.commands.delete(frame.id);
    this.app({ got: "reply", ...without(frame, "op") });
  }

  on_ping() {
    this.send({ op: "pong" });
    this.app({ got: "ping" });
  }

  on_pong() {
    this.app({ got: "pong" });
  }

  on_auth_required() {
    this.token = null;
    this.app({ got: "token_wanted" });
  }

  on_drain(frame) {
    this.drain = frame;
  }

  on_error(frame) {
    this.leastWait = frame.retry_after ?? 0;
    this.app({ got: "error", ...without(frame, "op") });
  }

  forward(name, seq) {
    const stream = this.streams.get(name);
    stream.last = Math.max(stream.last ?? 0, seq);
  }

  hole({ op, stream, seq }) {
    this.app({ got: "hole", op, stream, seq });
    this.giveUp();
  }
}

const toStdout = (item) => process.stdout.write(JSON.stringify(item) + "\n");
const client = new Client(JSON.parse(process.argv[2]), toStdout);
const orders = createInterface({ input: process.stdin });
orders.on("line", (line) => {
  const order = JSON.parse(line);
  client.order(order);
  toStdout({ got: "order", do: order.do });
});
orders.on("close", () => process.exit());
await client.run();
process.stdin.destroy();
