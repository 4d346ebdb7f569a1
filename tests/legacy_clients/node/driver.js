'use strict';
// The same driver as python/driver.py, for Node. NODE_PATH names where ./test installed the libraries.

const readline = require('readline');

const WebSocket = require('ws');
const { SchedulerClient, RetryClient, Worker, call } = require('./sdk.js');

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const workers = new Map();
const crowd = [];

const handlers = {
  add: ({ a, b }) => a + b,
  echo: (params) => params,
  nothing: () => null,
  fail: () => {
    throw new Error('out of paper');
  },
  slow10ms: async ({ a, b }) => {
    await sleep(10);
    return a + b;
  },
  odd: (n) => {
    if (n % 10 === 0) throw new Error(`no ${n}`);
    return 2 * n + 1;
  },
};

/** One of a thousand: it registers `NAME.echo` and answers with its own number. */
function member(url, name, number) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.on('open', () => {
      const methods = [{ name: `${name}.${number}`, docs: [] }];
      socket.send(JSON.stringify({ group: name, methods }), () => resolve(socket));
    });
    socket.on('error', reject);
    socket.on('message', (data) => {
      const message = JSON.parse(data.toString());
      if (message.type === 'ping') socket.send('{"type":"pong"}');
      else socket.send(JSON.stringify({ type: 'result', taskId: message.taskId, result: number }));
    });
  });
}

const operations = {
  async work({ url, name, prefix }) {
    const worker = new Worker({ schedulerURL: url, workerGroup: name, maxRetry: 1 });
    for (const [method, handler] of Object.entries(handlers)) {
      worker.registerMethod(`${prefix ?? name}.${method}`, handler);
    }
    await worker.start();
    workers.set(name, worker);
    return true;
  },
  async stop({ name }) {
    workers.get(name).stop();
    workers.delete(name);
    return true;
  },
  execute: ({ url, method, params }) => new SchedulerClient(url).execute(method, params),
  get_result: ({ url, task }) => new SchedulerClient(url).getResult(task),
  async execute_sync({ url, method, params, timeout = 30 }) {
    return (await new SchedulerClient(url).executeSync(method, params, timeout * 1000)).result;
  },
  call: ({ url, method, params }) => call(url, method, params),
  async retry({ url, method, params, retries = 3, delay = 0.1 }) {
    return (await new RetryClient(url, retries, delay * 1000).executeSyncWithRetry(method, params)).result;
  },
  async bench({ url, method, params, count }) {
    const client = new SchedulerClient(url);
    const times = [];
    for (let n = 0; n < count; n += 1) {
      const began = performance.now();
      await client.executeSync(method, params);
      times.push(performance.now() - began);
    }
    return times;
  },
  async many({ url, method, start, count, concurrency }) {
    const client = new SchedulerClient(url);
    const answers = [];
    let next = start;
    const one = async () => {
      while (next < start + count) {
        const n = next;
        next += 1;
        try {
          answers.push([n, { ok: (await client.executeSync(method, n)).result }]);
        } catch (error) {
          answers.push([n, { error: error.message }]);
        }
      }
    };
    await Promise.all(Array.from({ length: concurrency }, one));
    return answers;
  },
  async crowd({ url, name, count }) {
    for (let number = 0; number < count; number += 1) crowd.push(await member(url, name, number));
    return true;
  },
  async stop_reading({ number }) {
    crowd[number].pause();
    return true;
  },
};

async function serve(line) {
  const { id, op, ...rest } = JSON.parse(line);
  try {
    say({ id, ok: (await operations[op](rest)) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}

const input = readline.createInterface({ input: process.stdin });
input.on('line', serve);
input.on('close', () => process.exit(0));
say({ event: 'up' });
