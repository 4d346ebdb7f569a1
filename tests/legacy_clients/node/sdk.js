'use strict';
// go-server's Node SDK was never published. This is written after what is recorded of it: it uses the same two
// libraries, says the same things and has the same weaknesses, so that what the server must bear is borne.

const axios = require('axios');
const crypto = require('crypto');
const WebSocket = require('ws');

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class SchedulerClient {
  constructor(baseURL, timeout = 30000) {
    // Glued together as it is: a slash at its end becomes two.
    this.baseURL = baseURL;
    this.http = axios.create({ timeout, headers: { 'Content-Type': 'application/json' } });
  }

  async execute(method, params) {
    return this.request(() => this.http.post(`${this.baseURL}/api/execute`, { method, params }));
  }

  async getResult(taskId) {
    for (;;) {
      const response = await this.request(() => this.http.get(`${this.baseURL}/api/result/${taskId}`));
      if (response.status === 'pending' || response.status === 'processing') {
        await sleep(1000);
      } else if (response.status === 'error') {
        throw new Error(`HTTP request failed: ${response.result}`);
      } else {
        return response;
      }
    }
  }

  /** The timeout is looked at between polls only, and a poll does not return before the end. */
  async executeSync(method, params, timeout = 30000) {
    const { taskId } = await this.execute(method, params);
    const deadline = Date.now() + timeout;
    while (Date.now() < deadline) {
      const response = await this.getResult(taskId);
      if (response.status === 'done') return response;
      await sleep(500);
    }
    throw new Error('Timeout waiting for task completion');
  }

  async request(send) {
    try {
      return (await send()).data;
    } catch (error) {
      throw new Error(`HTTP request failed: ${error.message}`);
    }
  }
}

class RetryClient {
  constructor(baseURL, maxRetries = 3, retryDelay = 1000) {
    this.client = new SchedulerClient(baseURL);
    this.maxRetries = maxRetries;
    this.retryDelay = retryDelay;
  }

  async executeSyncWithRetry(method, params) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.client.executeSync(method, params);
      } catch (error) {
        if (attempt >= this.maxRetries) throw new Error(`After ${attempt} retries: ${error.message}`);
        await sleep(this.retryDelay);
      }
    }
  }
}

class Worker {
  constructor({ schedulerURL, workerGroup, maxRetry = 3, pingInterval = 30000 }) {
    Object.assign(this, { schedulerURL, workerGroup, maxRetry, pingInterval });
    this.methods = new Map();
    this.running = false;
  }

  registerMethod(name, handler) {
    this.methods.set(name, handler);
  }

  async start() {
    this.running = true;
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.connect();
        break;
      } catch (error) {
        if (attempt >= this.maxRetry) throw error;
        await sleep(attempt * 1000);
      }
    }
    this.timer = setInterval(() => this.send({ type: 'ping' }), this.pingInterval);
  }

  stop() {
    this.running = false;
    clearInterval(this.timer);
    this.socket.close();
  }

  connect() {
    return new Promise((resolve, reject) => {
      // The URL is taken as it is. `ws` offers permessage-deflate and answers WebSocket pings by itself.
      const socket = new WebSocket(this.schedulerURL);
      socket.on('open', () => {
        this.socket = socket;
        const methods = [...this.methods.keys()].map((name) => ({ name, docs: [] }));
        socket.send(JSON.stringify({ group: this.workerGroup, methods }), () => resolve());
      });
      socket.on('message', (data) => this.receive(data));
      socket.on('error', reject);
      // A connection that never opened closes too, so each attempt that fails leaves another one behind.
      socket.on('close', () => this.reconnectLater());
    });
  }

  reconnectLater() {
    if (!this.running || this.maxRetry === 1 && !this.socket) return;
    setTimeout(() => {
      if (this.running) this.connect().catch(() => {});
    }, 5000);
  }

  /** On the newest socket, whichever asked. */
  send(message) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  async receive(data) {
    const message = JSON.parse(data.toString());
    if (message.type === 'ping') this.send({ type: 'pong' });
    else if (message.type === 'task') await this.run(message, () => message.params);
    else if (message.type === 'encrypted_task') {
      // There is no such function in Node: every encrypted task fails with these words.
      await this.run(message, () => crypto.createDecipherGCM('aes-256-gcm', message.key));
    } else console.error(`Unknown message type: ${message.type}`);
  }

  async run({ taskId, method }, params) {
    try {
      const handler = this.methods.get(method);
      if (!handler) throw new Error(`Unknown method: ${method}`);
      this.send({ type: 'result', taskId, result: await handler(params()) });
    } catch (error) {
      this.send({ type: 'result', taskId, error: error.message });
    }
  }
}

/** The call helper: the result alone. */
async function call(host, method, params) {
  return (await new SchedulerClient(host).executeSync(method, params)).result;
}

module.exports = { SchedulerClient, RetryClient, Worker, call };
