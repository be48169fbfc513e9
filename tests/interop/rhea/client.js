// A device that does what it is told: one JSON object a line on standard input, one answer a line on standard output.
// `clients.py` beside this directory says which words there are. The AMQP is rhea's.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const readline = require('readline');
const { createRequire } = require('module');
const installed = createRequire(process.argv[2] + '/');
const rhea = installed('rhea');

const container = rhea.create_container();
const links = {};
let connection;
let over; // what the connection ended with, once it has

// What a link, a session or a connection ended with.
class Ended extends Error {
    constructor(error) {
        super((error && error.description) || 'no error was given');
        this.condition = error && error.condition;
    }
}

// Resolves with the first of the named events, rejects when the link, its session or the connection ends.
function until(emitter, names, act) {
    return new Promise((resolve, reject) => {
        const undo = [];
        const on = (where, name, what) => {
            where.on(name, what);
            undo.push(() => where.removeListener(name, what));
        };
        const finish = (how, what) => {
            undo.forEach((one) => one());
            how(what);
        };
        for (const name of names) on(emitter, name, (context) => finish(resolve, { name, context }));
        if (over) return reject(over);
        const ended = (context) => {
            const of = [context, context.sender, context.receiver, context.session, context.connection];
            const found = of.find((one) => one && one.error);
            finish(reject, new Ended(found && found.error));
        };
        if (emitter !== connection) {
            const kind = emitter.is_receiver() ? 'receiver_' : 'sender_';
            for (const name of [kind + 'error', kind + 'close']) if (!names.includes(name)) on(emitter, name, ended);
            for (const name of ['session_error', 'session_close']) on(emitter.session, name, ended);
        }
        for (const name of ['connection_error', 'connection_close', 'disconnected', 'error']) on(connection, name, ended);
        if (act) act();
    });
}

// An attach without its terminus announces a refusal; the error comes with the detach, perhaps in the same breath.
function attached(link, kind, node) {
    return new Promise((resolve, reject) => {
        until(link, ['never']).catch(reject);
        link.once(kind + '_open', () => link[node] && link[node].address && resolve({}));
    });
}

function content(size) {
    const pattern = Buffer.from('0123456789abcdefghijklmnopqrstuvwxyz');
    return Buffer.alloc(size, pattern);
}

function described(buffer) {
    const text = buffer.length <= 200 ? buffer.toString() : undefined;
    return { length: buffer.length, sha256: crypto.createHash('sha256').update(buffer).digest('hex'), body: text };
}

function bytes_of(body) {
    if (Buffer.isBuffer(body)) return body;
    if (body && body.content !== undefined) return Buffer.concat([].concat(body.content));
    return Buffer.from(String(body));
}

const SETTLE = {
    accept: (delivery) => delivery.accept(),
    reject: (delivery) => delivery.reject({ condition: 'fieldgate:test', description: 'the device says no' }),
    release: (delivery) => delivery.release(),
    modify: (delivery) => delivery.modified({ delivery_failed: true, undeliverable_here: false }),
};

const WORDS = {
    // With `url`, over a WebSocket of the package `ws`, with TLS where the URL says so.
    async open({ port, container: id, user, password, url, ca, subprotocol }) {
        const login = { username: user || 'anonymous', password };
        const options = ca ? { ca: fs.readFileSync(ca) } : {};
        const web = url && rhea.websocket_connect(installed('ws'))(url, [subprotocol], options);
        const there = url ? { connection_details: web } : { host: '127.0.0.1', port };
        connection = container.connect({ ...there, container_id: id, reconnect: false, ...login });
        connection.on('error', () => {});
        const end = (context) => { over = over || new Ended(context.error || connection.error); };
        for (const name of ['connection_error', 'connection_close', 'disconnected']) connection.on(name, end);
        await until(connection, ['connection_open']);
        return {};
    },
    async token({ audience, token }) {
        const sender = connection.open_sender({ name: 'cbs-sender', target: '$cbs' });
        const receiver = connection.open_receiver({ name: 'cbs-receiver', source: '$cbs', credit_window: 0, autoaccept: true });
        await Promise.all([until(sender, ['sendable']), until(receiver, ['receiver_open'])]);
        receiver.add_credit(1);
        const properties = { operation: 'put-token', type: 'servicebus.windows.net:sastoken', name: audience };
        const request = { message_id: 'token-1', reply_to: 'cbs', application_properties: properties, body: token };
        const { context } = await until(receiver, ['message'], () => sender.send(request));
        const to = context.message.correlation_id;
        if (to !== 'token-1') throw new Error('the answer of $cbs is to ' + to);
        return { status: context.message.application_properties['status-code'] };
    },
    async sender({ link, address, settled }) {
        const mode = settled === undefined ? 2 : settled ? 1 : 0;
        const options = { name: link, target: address, snd_settle_mode: mode, treat_modified_as_released: false };
        links[link] = connection.open_sender(options);
        return attached(links[link], 'sender', 'target');
    },
    async send({ link, body, size, properties, format }) {
        const sender = links[link];
        if (!sender.sendable()) await until(sender, ['sendable']);
        const data = size === undefined ? Buffer.from(body) : content(size);
        const message = { body: rhea.message.data_section(data), application_properties: properties };
        const encoded = rhea.message.encode(message);
        if (sender.local.attach.snd_settle_mode === 1) {
            sender.send(encoded, undefined, format || 0);
            return { outcome: 'settled' };
        }
        let delivery;
        const names = ['accepted', 'rejected', 'released', 'modified'];
        const { name } = await until(sender, names, () => { delivery = sender.send(encoded, undefined, format || 0); });
        const error = delivery.remote_state.error;
        return { outcome: name, condition: error && error.condition, text: error && error.description };
    },
    // Many at once: rhea has them all in one piece of its output.
    async burst({ link, count, size }) {
        const sender = links[link];
        if (!sender.sendable()) await until(sender, ['sendable']);
        const body = rhea.message.data_section(content(size));
        let accepted = 0;
        const all = new Promise((resolve) => sender.on('accepted', () => { if (++accepted === count) resolve(); }));
        await Promise.race([all, until(sender, ['rejected', 'released'], () => {
            for (let sent = 0; sent < count; sent++) sender.send({ body });
        })]);
        return { accepted };
    },
    async receiver({ link, address, second }) {
        const options = { name: link, source: address, credit_window: 0, autoaccept: false, rcv_settle_mode: second ? 1 : 0 };
        const receiver = connection.open_receiver(options);
        receiver.waiting = [];
        receiver.on('message', (context) => receiver.waiting.push(context));
        links[link] = receiver;
        return attached(receiver, 'receiver', 'source');
    },
    async credit({ link, credit }) {
        links[link].drain = false;
        links[link].add_credit(credit);
        return {};
    },
    async receive({ link, then }) {
        const receiver = links[link];
        while (!receiver.waiting.length) await until(receiver, ['message']);
        const { message, delivery } = receiver.waiting.shift();
        const raw = Buffer.isBuffer(message) ? rhea.message.decode(message) : message;
        if (then) {
            const second = receiver.local.attach.rcv_settle_mode === 1;
            // In the second mode the sender settles first: only then is the delivery over.
            if (second) await until(receiver, ['settled'], () => SETTLE[then](delivery));
            else SETTLE[then](delivery);
        }
        return {
            ...described(bytes_of(raw.body)),
            properties: raw.application_properties || {},
            format: delivery.format,
            delivery_count: raw.delivery_count || 0,
        };
    },
    async drain({ link, credit }) {
        const receiver = links[link];
        const before = receiver.waiting.length;
        receiver.add_credit(credit);
        // Where the last credit went for a message, there is nothing to drain and no flow comes.
        const used = new Promise((resolve) => receiver.on('message', () => receiver.credit || resolve()));
        await Promise.race([used, until(receiver, ['receiver_drained'], () => receiver.drain_credit())]);
        receiver.drain = false;
        return { received: receiver.waiting.length - before };
    },
    async close({ link }) {
        const kind = links[link].is_receiver() ? 'receiver_close' : 'sender_close';
        await until(links[link], [kind], () => links[link].close());
        return {};
    },
};

const input = readline.createInterface({ input: process.stdin });
const answer = (what) => process.stdout.write(JSON.stringify(what) + '\n');

// One after the other, as they come.
let last = Promise.resolve();
input.on('line', (line) => {
    const order = JSON.parse(line);
    last = last
        .then(() => WORDS[order.do](order))
        .then(answer, (error) => answer({ error: error.condition || 'none', text: error.message }));
});
input.on('close', () => {
    if (!connection || over) process.exit(0);
    connection.on('disconnected', () => process.exit(0));
    connection.on('connection_close', () => process.exit(0));
    connection.close();
});
process.on('uncaughtException', (error) => { console.error(error.stack); process.exit(1); });
